#include "emulator.h"

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "fibers.h"

constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  using result_type = std::uint64_t;
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~result_type{0}; }

  result_type operator()() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

  // The number of a set bit; every one has its chance, though not the same.
  unsigned pick(std::uint32_t bits) {
    const auto turn = static_cast<int>((*this)() % 32);
    return (std::countr_zero(std::rotr(bits, turn)) + turn) % 32;
  }

 private:
  std::uint64_t state_;
};

std::uint64_t current_seed() {
  static const std::uint64_t drawn = std::random_device{}();
  const char* chosen = std::getenv("FUSEDFORMER_EMULATION_SEED");
  return chosen == nullptr || *chosen == '\0' ? drawn : std::strtoull(chosen, nullptr, 10);
}

// Where a thread waits for others.
struct Meeting {
  const char* call;
  unsigned mask;
  std::source_location where;

  bool operator==(const Meeting& other) const {
    return mask == other.mask && where.line() == other.where.line() && std::strcmp(call, other.call) == 0 &&
           std::strcmp(where.file_name(), other.where.file_name()) == 0;
  }

  std::string text() const {
    const std::string file = where.file_name();
    char mask_text[16];
    std::snprintf(mask_text, sizeof(mask_text), "(0x%08x)", mask);
    return std::string(call) + mask_text + " at " + file.substr(file.find_last_of('/') + 1) + ":" +
           std::to_string(where.line());
  }
};

std::string text(const Index3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

Index3 unravel(unsigned position, const Index3& sizes) {
  return {position % sizes.x, position / sizes.x % sizes.y, position / sizes.x / sizes.y};
}

unsigned volume(const Index3& sizes) { return sizes.x * sizes.y * sizes.z; }

std::string kernel_name(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_sname == nullptr) return "(without a name)";
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr), std::free);
  const std::string name = demangled ? demangled.get() : info.dli_sname;
  const std::size_t begin = name.starts_with("void ") ? 5 : 0;  // a template's name carries its return type
  return name.substr(begin, name.find('(') - begin);
}

struct Thread {
  unsigned position;  // in the block
  Meeting meeting = {};
  std::uint64_t value = 0;  // brought to a warp_exchange, then taken from it
  unsigned source = 0;
};

// One bit for each lane.
struct Warp {
  std::uint32_t alive = 0;        // has not exited
  std::uint32_t ready = 0;        // can go on
  std::uint32_t in_exchange = 0;  // waits for lanes of its warp; one that is alive and in neither waits for the block
};

using BlockFibers = Fibers<kMaxThreads>;

// A grid that runs, and the block of it that does.
class Grid {
 public:
  Grid(const void* kernel, const LaunchShape& shape, const std::function<void()>& thread, BlockFibers& fibers)
      : kernel_(kernel), shape_(shape), thread_(thread), fibers_(fibers), shared_(shape.shared_bytes + kCanaryBytes) {}

  void run() {
    blockDim = shape_.block;
    gridDim = shape_.grid;
    std::vector<unsigned> order(volume(shape_.grid));
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random_);
    for (const unsigned block : order) run_block(block);
  }

  void* shared_memory() { return shared_.data(); }
  unsigned lane() const { return current_->position % kWarpSize; }
  void run_thread() const { thread_(); }

  void meet_block(const Meeting& meeting) {
    current_->meeting = meeting;
    ++at_barrier_;
    release_barrier_if_complete();
    fibers_.switch_back(current_->position);
  }

  std::uint64_t meet_warp(const Meeting& meeting, std::uint64_t value, unsigned source) {
    if ((meeting.mask >> lane() & 1) == 0) fail("lane " + std::to_string(lane()) + " is not in " + meeting.text());
    current_->meeting = meeting;
    current_->value = value;
    current_->source = source;
    const unsigned warp = current_->position / kWarpSize;
    warps_[warp].in_exchange |= 1u << lane();
    release_exchange_if_complete(warp, meeting);
    fibers_.switch_back(current_->position);
    return current_->value;
  }

  void exit_thread() {
    const unsigned warp = current_->position / kWarpSize;
    warps_[warp].alive &= ~(1u << lane());
    --alive_;
    for (std::uint32_t left = warps_[warp].in_exchange; left != 0; left &= left - 1) {
      release_exchange_if_complete(warp, thread(warp, std::countr_zero(left)).meeting);
    }
    release_barrier_if_complete();
    fibers_.switch_back(current_->position);
  }

  [[noreturn]] void fail(const std::string& message) {
    failure_ = message + ", thread " + text(threadIdx);
    fibers_.switch_back(current_->position);
    std::abort();  // not reached: the scheduler throws, and resumes nobody
  }

 private:
  static constexpr std::size_t kCanaryBytes = 256;
  static constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type

  Thread& thread(unsigned warp, unsigned lane) { return threads_[warp * kWarpSize + lane]; }

  void run_block(unsigned position) {
    blockIdx = unravel(position, shape_.grid);
    random_ = Random(seed_ ^ std::uint64_t{position} << 32);
    std::fill(shared_.begin(), shared_.end(), kPoison);
    start_threads();
    while (alive_ > 0) {
      std::uint32_t candidates = 0;
      for (unsigned warp = 0; warp < warps_.size(); ++warp) {
        if (warps_[warp].ready != 0) candidates |= 1u << warp;
      }
      if (candidates == 0) throw_error("deadlock: no thread can go on" + list_waiting());
      run_warp(random_.pick(candidates));
    }
    const auto canary = shared_.end() - kCanaryBytes;
    if (std::any_of(canary, shared_.end(), [](unsigned char byte) { return byte != kPoison; })) {
      throw_error("a write past the block's " + std::to_string(shape_.shared_bytes) + " bytes of shared memory");
    }
  }

  void start_threads() {
    alive_ = volume(shape_.block);
    at_barrier_ = 0;
    warps_.fill({});
    threads_.clear();
    for (unsigned position = 0; position < alive_; ++position) {
      threads_.push_back({position});
      warps_[position / kWarpSize].alive |= 1u << position % kWarpSize;
    }
    for (Warp& warp : warps_) warp.ready = warp.alive;
  }

  // Lets a warp run far ahead of the others: as long as it can, or until a one in sixteen chance ends it.
  void run_warp(unsigned index) {
    Warp& warp = warps_[index];
    do {
      const unsigned lane = random_.pick(warp.ready);
      warp.ready &= ~(1u << lane);
      current_ = &thread(index, lane);
      threadIdx = unravel(current_->position, shape_.block);
      fibers_.resume(current_->position, enter_fiber);
      if (!failure_.empty()) throw_error(failure_);
    } while (warp.ready != 0 && random_() % 16 != 0);
  }

  static void enter_fiber();

  void release_barrier_if_complete() {
    if (at_barrier_ == 0 || at_barrier_ < alive_) return;
    const Meeting* first = nullptr;
    for (unsigned warp = 0; warp < warps_.size(); ++warp) {
      for (std::uint32_t left = warps_[warp].alive; left != 0; left &= left - 1) {
        const Meeting& meeting = thread(warp, std::countr_zero(left)).meeting;
        if (first == nullptr) first = &meeting;
        if (!(meeting == *first)) fail("divergent barrier" + list_waiting());
      }
    }
    at_barrier_ = 0;
    for (Warp& warp : warps_) warp.ready = warp.alive;
  }

  void release_exchange_if_complete(unsigned index, const Meeting& meeting) {
    Warp& warp = warps_[index];
    const std::uint32_t expected = meeting.mask & warp.alive;
    if ((expected & ~warp.in_exchange) != 0) return;
    std::array<std::uint64_t, kWarpSize> brought;
    for (std::uint32_t left = expected; left != 0; left &= left - 1) {
      const unsigned lane = std::countr_zero(left);
      if (!(thread(index, lane).meeting == meeting)) return;
      brought[lane] = thread(index, lane).value;
    }
    for (std::uint32_t left = expected; left != 0; left &= left - 1) {
      Thread& taker = thread(index, std::countr_zero(left));
      if (taker.source >= kWarpSize || (expected >> taker.source & 1) == 0) {
        fail("lane " + std::to_string(taker.position % kWarpSize) + " reads lane " + std::to_string(taker.source) +
             ", which takes no part in " + meeting.text());
      }
      taker.value = brought[taker.source];
    }
    warp.in_exchange &= ~expected;
    warp.ready |= expected;
  }

  // "; threads 0-31 wait in __syncthreads(0xffffffff) at reduce.cuh:70; ..."
  std::string list_waiting() {
    std::string out;
    const unsigned threads = volume(shape_.block);
    for (unsigned begin = 0, end; begin < threads; begin = end) {
      const Meeting* meeting = waiting_at(begin);
      end = begin + 1;
      while (end < threads && same(meeting, waiting_at(end))) ++end;
      const std::string range = end == begin + 1 ? std::to_string(begin)
                                                 : std::to_string(begin) + "-" + std::to_string(end - 1);
      out += "; threads " + range + (meeting == nullptr ? " have exited" : " wait in " + meeting->text());
    }
    return out;
  }

  const Meeting* waiting_at(unsigned position) {
    const bool alive = warps_[position / kWarpSize].alive >> position % kWarpSize & 1;
    return alive ? &threads_[position].meeting : nullptr;
  }

  static bool same(const Meeting* a, const Meeting* b) {
    return a == b || (a != nullptr && b != nullptr && *a == *b);
  }

  [[noreturn]] void throw_error(const std::string& message) {
    fibers_.abandon();
    throw std::runtime_error("emulated kernel " + kernel_name(kernel_) + ", block " + text(blockIdx) + " of " +
                             text(shape_.grid) + ", FUSEDFORMER_EMULATION_SEED=" + std::to_string(seed_) + ": " +
                             message);
  }

  const void* kernel_;
  const LaunchShape& shape_;
  const std::function<void()>& thread_;
  BlockFibers& fibers_;
  std::vector<Thread> threads_;
  Thread* current_ = nullptr;  // the one that runs
  std::vector<unsigned char> shared_;
  const std::uint64_t seed_ = current_seed();
  Random random_{seed_};
  std::array<Warp, kMaxThreads / kWarpSize> warps_;
  unsigned alive_ = 0, at_barrier_ = 0;
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

}  // namespace

void run_grid(const void* kernel, const LaunchShape& shape, const std::function<void()>& thread) {
  thread_local const auto fibers = std::make_unique<BlockFibers>();
  Grid running(kernel, shape, thread, *fibers);
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

bool is_valid(const LaunchShape& shape) {
  const auto some = [](const Index3& sizes) { return sizes.x > 0 && sizes.y > 0 && sizes.z > 0; };
  return some(shape.grid) && shape.grid.y <= 65535 && shape.grid.z <= 65535 && some(shape.block) &&
         volume(shape.block) <= kMaxThreads && shape.shared_bytes <= kMaxSharedBytes;
}

}  // namespace emulator
