#include "emulator.h"

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "block.h"
#include "random.h"

constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

std::string text(const Index3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

Index3 unravel(unsigned position, const Index3& sizes) {
  return {position % sizes.x, position / sizes.x % sizes.y, position / sizes.x / sizes.y};
}

std::string kernel_name(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_sname == nullptr) return "(without a name)";
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr), std::free);
  const std::string name = demangled ? demangled.get() : info.dli_sname;
  const std::size_t begin = name.starts_with("void ") ? 5 : 0;  // a template's name carries its return type
  return name.substr(begin, name.find('(') - begin);
}

// The fibers of the first `count` blocks of a cluster; kept for the next launch.
Block::BlockFibers& fibers_of(unsigned rank) {
  thread_local std::vector<std::unique_ptr<Block::BlockFibers>> fibers;
  while (fibers.size() <= rank) fibers.push_back(std::make_unique<Block::BlockFibers>());
  return *fibers[rank];
}

// A grid that runs, and the cluster of it that does: its blocks run together.
class Grid {
 public:
  Grid(const void* kernel, const LaunchShape& shape, const std::function<void()>& thread)
      : kernel_(kernel), shape_(shape), thread_(thread) {
    for (unsigned rank = 0; rank < shape.cluster; ++rank) blocks_.emplace_back(fibers_of(rank));
  }

  void run() {
    blockDim = shape_.block;
    gridDim = shape_.grid;
    std::vector<unsigned> order(volume(shape_.grid) / shape_.cluster);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random_);
    for (const unsigned cluster : order) run_cluster(cluster * shape_.cluster);
  }

  void* shared_memory() { return block_->shared.data(); }
  unsigned lane() const { return current_->position % kWarpSize; }
  unsigned rank() const { return block_->rank; }
  unsigned cluster_size() const { return shape_.cluster; }
  void run_thread() const { thread_(); }

  void meet_block(const Meeting& meeting) {
    current_->meeting = meeting;
    ++block_->at_barrier;
    release_barrier(*block_);
    switch_back();
  }

  std::uint64_t meet_warp(const Meeting& meeting, std::uint64_t value, unsigned source) {
    if ((meeting.mask >> lane() & 1) == 0) fail("lane " + std::to_string(lane()) + " is not in " + meeting.text());
    Thread& self = *current_;
    self.meeting = meeting;
    self.value = value;
    self.source = source;
    const unsigned warp = self.position / kWarpSize;
    block_->warps[warp].in_exchange |= 1u << lane();
    release_exchange(warp, meeting);
    switch_back();
    return self.value;
  }

  void arrive_in_cluster(const Meeting& meeting) {
    if (current_->has_arrived) fail("a second arrival without a wait: " + meeting.text());
    current_->has_arrived = true;
    current_->arrived_at = barrier_number_;
    ++arrived_;
    complete_cluster_barrier();
  }

  void wait_for_cluster(const Meeting& meeting) {
    if (!current_->has_arrived) fail("a wait without an arrival: " + meeting.text());
    current_->has_arrived = false;
    if (current_->arrived_at < barrier_number_) return;
    current_->meeting = meeting;
    block_->warps[current_->position / kWarpSize].in_cluster |= 1u << lane();
    switch_back();
  }

  void* shared_memory_of(unsigned rank, void* own) {
    const std::string who = "the shared memory of block " + std::to_string(rank) + " of the cluster, which ";
    if (rank >= blocks_.size()) fail(who + "has " + std::to_string(blocks_.size()));
    Block& other = blocks_[rank];
    if (!other.has_begun) fail(who + "has not begun");
    if (other.alive == 0) fail(who + "has exited");
    return other.shared.data() + (static_cast<unsigned char*>(own) - block_->shared.data());
  }

  void exit_thread() {
    Warp& warp = block_->warps[current_->position / kWarpSize];
    warp.alive &= ~(1u << lane());
    --block_->alive;
    --alive_;
    if (current_->has_arrived && current_->arrived_at == barrier_number_) --arrived_;
    for (std::uint32_t left = warp.in_exchange; left != 0; left &= left - 1) {
      const unsigned index = current_->position / kWarpSize;
      release_exchange(index, block_->thread(index, std::countr_zero(left)).meeting);
    }
    release_barrier(*block_);
    complete_cluster_barrier();
    switch_back();
  }

  [[noreturn]] void fail(const std::string& message) {
    failure_ = message + ", thread " + text(threadIdx);
    switch_back();
    std::abort();  // not reached: the scheduler throws, and resumes nobody
  }

 private:
  void switch_back() { block_->fibers.switch_back(current_->position); }

  void run_cluster(unsigned first) {
    random_ = Random(seed_ ^ std::uint64_t{first} << 32);
    alive_ = shape_.cluster * volume(shape_.block);
    arrived_ = 0;
    barrier_number_ = 0;
    for (unsigned rank = 0; rank < shape_.cluster; ++rank) {
      blocks_[rank].start(shape_, unravel(first + rank, shape_.grid), rank);
    }
    while (alive_ > 0) {
      std::uint32_t candidates = 0;
      for (const Block& block : blocks_) candidates |= std::uint32_t{block.ready_warps() != 0} << block.rank;
      if (candidates == 0) throw_error("deadlock: no thread can go on" + list_waiting());
      block_ = &blocks_[random_.pick(candidates)];
      run_warp(random_.pick(block_->ready_warps()));
    }
    for (Block& block : blocks_) {
      block_ = &block;
      if (block.has_overrun()) {
        throw_error("a write past the block's " + std::to_string(shape_.shared_bytes) + " bytes of shared memory");
      }
    }
  }

  // Lets a warp run far ahead of the others: every second time as long as it can, else until a one in sixteen chance
  // ends it, so that one warp reaches the next barrier while another has not done a step since the last.
  void run_warp(unsigned index) {
    Warp& warp = block_->warps[index];
    blockIdx = block_->index;
    block_->has_begun = true;
    const bool to_the_end = random_() % 2 == 0;
    do {
      const unsigned lane = random_.pick(warp.ready);
      warp.ready &= ~(1u << lane);
      current_ = &block_->thread(index, lane);
      threadIdx = unravel(current_->position, shape_.block);
      block_->fibers.resume(current_->position, enter_fiber);
      if (!failure_.empty()) throw_error(failure_);
    } while (warp.ready != 0 && (to_the_end || random_() % 16 != 0));
  }

  static void enter_fiber();

  void release_barrier(Block& block) {
    if (!block.release_barrier_if_complete()) fail("divergent barrier" + block.list_waiting());
  }

  void release_exchange(unsigned warp, const Meeting& meeting) {
    const std::string complaint = block_->release_exchange_if_complete(warp, meeting);
    if (!complaint.empty()) fail(complaint);
  }

  void complete_cluster_barrier() {
    if (arrived_ == 0 || arrived_ < alive_) return;
    arrived_ = 0;
    ++barrier_number_;
    for (Block& block : blocks_) block.release_cluster();
  }

  std::string list_waiting() const {
    std::string out;
    for (const Block& block : blocks_) {
      if (blocks_.size() > 1) out += "; block " + std::to_string(block.rank) + " of the cluster";
      out += block.list_waiting();
    }
    return out;
  }

  [[noreturn]] void throw_error(const std::string& message) {
    for (Block& block : blocks_) block.fibers.abandon();
    throw std::runtime_error("emulated kernel " + kernel_name(kernel_) + ", block " + text(blockIdx) + " of " +
                             text(shape_.grid) + ", FUSEDFORMER_EMULATION_SEED=" + std::to_string(seed_) + ": " +
                             message);
  }

  const void* kernel_;
  const LaunchShape& shape_;
  const std::function<void()>& thread_;
  std::vector<Block> blocks_;  // of the cluster
  Block* block_ = nullptr;     // the one that runs
  Thread* current_ = nullptr;  // of it
  const std::uint64_t seed_ = current_seed();
  Random random_{seed_};
  unsigned alive_ = 0, arrived_ = 0;  // threads of the cluster: not exited, and at its barrier
  std::uint64_t barrier_number_ = 0;  // barriers of the cluster that are complete
  std::string failure_;
};

// What device code finds itself in. A grid runs on the thread that launched it.
thread_local Grid* grid = nullptr;

// A fiber outlives its thread: it goes on as the same thread of the next block. Device code owns nothing that would
// have to be destroyed, so a failed block's fibers are simply abandoned.
void Grid::enter_fiber() {
  for (;;) {
    grid->run_thread();
    grid->exit_thread();
  }
}

// What kernels may have of something, where that is more than every launch may.
class Allowances {
 public:
  void allow(const void* kernel, std::size_t most) {
    const std::lock_guard lock(mutex_);
    most_[kernel] = most;
  }
  std::size_t of(const void* kernel, std::size_t otherwise) {
    const std::lock_guard lock(mutex_);
    const auto found = most_.find(kernel);
    return found == most_.end() ? otherwise : found->second;
  }

 private:
  std::mutex mutex_;
  std::map<const void*, std::size_t> most_;
} clusters, shared_bytes;

}  // namespace

void run_grid(const void* kernel, const LaunchShape& shape, const std::function<void()>& thread) {
  Grid running(kernel, shape, thread);
  grid = &running;
  running.run();
}

void* shared_memory() { return grid->shared_memory(); }
unsigned lane() { return grid->lane(); }
void fail(const std::string& message) { grid->fail(message); }

void block_barrier(std::source_location where) { grid->meet_block({"__syncthreads", 0xffffffffu, where}); }

std::uint64_t warp_exchange(const char* call, unsigned mask, std::uint64_t value, unsigned source,
                            std::source_location where) {
  return grid->meet_warp({call, mask, where}, value, source);
}

unsigned cluster_rank() { return grid->rank(); }
unsigned cluster_size() { return grid->cluster_size(); }
void cluster_arrive(std::source_location where) { grid->arrive_in_cluster({"cluster_arrive", 0xffffffffu, where}); }
void cluster_wait(std::source_location where) { grid->wait_for_cluster({"cluster_wait", 0xffffffffu, where}); }
void* shared_memory_of(unsigned rank, void* own) { return grid->shared_memory_of(rank, own); }

void allow_large_clusters(const void* kernel) { clusters.allow(kernel, kMaxCluster); }

bool allow_shared_bytes(const void* kernel, std::size_t bytes) {
  if (bytes <= kMaxAllowedSharedBytes) shared_bytes.allow(kernel, bytes);
  return bytes <= kMaxAllowedSharedBytes;
}

bool is_valid(const void* kernel, const LaunchShape& shape) {
  const auto some = [](const Index3& sizes) { return sizes.x > 0 && sizes.y > 0 && sizes.z > 0; };
  return some(shape.grid) && shape.grid.y <= 65535 && shape.grid.z <= 65535 && some(shape.block) &&
         volume(shape.block) <= kMaxThreads && shape.shared_bytes <= shared_bytes.of(kernel, kMaxSharedBytes) &&
         shape.cluster > 0 && shape.cluster <= clusters.of(kernel, kMaxPortableCluster) &&
         shape.grid.x % shape.cluster == 0;
}

}  // namespace emulator
