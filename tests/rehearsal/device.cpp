// The pretended device: memory, streams, captures, and the checks of a launch.
#include "device.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>

namespace rehearsal {

std::atomic<long> counters[kCounters];

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;
constexpr std::size_t kArenaBytes = std::size_t{16} << 40;

std::mutex mutex;
std::map<std::uintptr_t, std::size_t> allocations;
std::size_t used = 0;
std::set<Stream*> capturing;
int captures = 0;
std::atomic<int> open{0};

// All of the addresses that the device's memory will ever have.
std::uintptr_t arena() {
  static const auto start = reinterpret_cast<std::uintptr_t>(
      mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return start;
}

}  // namespace

void refuse(const char* format, ...) {
  ++counters[kRefusals];
  va_list arguments;
  va_start(arguments, format);
  std::fputs("rehearsal: refused: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
}

void* allocate(std::size_t bytes) {
  static std::size_t next = (arena() + kPage - 1) / kPage * kPage - arena();
  const std::lock_guard guard(mutex);
  if (used + bytes > kMemoryBytes) return nullptr;
  // A gap of one page, so that no pointer just past one allocation is inside another.
  const std::size_t taken = (bytes + kPage - 1) / kPage * kPage + kPage;
  if (next + taken > kArenaBytes) return nullptr;
  const std::uintptr_t address = arena() + next;
  if (mprotect(reinterpret_cast<void*>(address), taken - kPage, PROT_READ | PROT_WRITE) != 0) return nullptr;
  next += taken;
  allocations[address] = bytes;
  used += bytes;
  ++counters[kAllocations];
  return reinterpret_cast<void*>(address);
}

bool release(void* address) {
  const std::lock_guard guard(mutex);
  const auto found = allocations.find(reinterpret_cast<std::uintptr_t>(address));
  if (found == allocations.end()) return false;
  const std::size_t taken = (found->second + kPage - 1) / kPage * kPage;
  mmap(address, taken, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  used -= found->second;
  allocations.erase(found);
  return true;
}

std::size_t used_bytes() {
  const std::lock_guard guard(mutex);
  return used;
}

bool is_device_address(std::uintptr_t address) { return address >= arena() && address < arena() + kArenaBytes; }

std::size_t bytes_from(std::uintptr_t address) {
  const std::lock_guard guard(mutex);
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin()) return 0;
  --found;
  const std::uintptr_t end = found->first + found->second;
  return address < end ? end - address : 0;
}

Stream* stream_of(const void* handle) {
  static Stream standard;
  const auto number = reinterpret_cast<std::uintptr_t>(handle);
  return number <= 2 ? &standard : static_cast<Stream*>(const_cast<void*>(handle));
}

int begin_capture(Stream* stream) {
  const std::lock_guard guard(mutex);
  stream->capture = open = ++captures;
  stream->is_origin = true;
  capturing.insert(stream);
  return captures;
}

void end_capture(Stream* stream) {
  const std::lock_guard guard(mutex);
  for (Stream* other : capturing) other->capture = 0;  // those that joined it too
  stream->capture = 0;
  stream->is_origin = false;
  capturing.clear();
  open = 0;
}

void leave_capture(Stream* stream) {
  const std::lock_guard guard(mutex);
  capturing.erase(stream);
}

int open_capture() { return open; }

bool synchronise(const char* call, bool is_captured) {
  ++counters[kSynchronisations];
  if (!is_captured) return true;
  refuse("%s during a capture", call);
  return false;
}

bool set_dynamic_limit(Function& function, int bytes) {
  if (bytes < 0 || bytes + function.static_shared > kSharedPerBlockOptin) {
    refuse("%s: %d B of dynamic shared memory beside %d B static: a block has %d B", function.name.c_str(), bytes,
           function.static_shared, kSharedPerBlockOptin);
    return false;
  }
  function.dynamic_limit = bytes;
  return true;
}

namespace {

// A parameter of eight bytes may be a pointer: then to what is allocated, and not to the host's memory.
bool check_pointers(const Function& function, void** parameters) {
  for (const Parameter& parameter : function.parameters) {
    if (parameter.size != 8 || parameters[parameter.index] == nullptr) continue;
    const auto value = *static_cast<const std::uintptr_t*>(parameters[parameter.index]);
    if (is_device_address(value) && bytes_from(value) == 0) {
      refuse("%s: parameter %d points to freed memory or past its end", function.name.c_str(), parameter.index);
      return false;
    }
  }
  return true;
}

bool check_cluster(const Function& function, const Launch& launch) {
  const unsigned* cluster = launch.cluster;
  const unsigned size = cluster[0] * cluster[1] * cluster[2];
  const unsigned most = function.allows_large_clusters ? 16 : 8;
  if (size == 0 || size > most) {
    refuse("%s: clusters of %u blocks, at most %u", function.name.c_str(), size, most);
    return false;
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (launch.grid[axis] % cluster[axis] == 0) continue;
    refuse("%s: %u blocks along axis %d in clusters of %u", function.name.c_str(), launch.grid[axis], axis,
           cluster[axis]);
    return false;
  }
  return true;
}

bool check_block(const Function& function, const Launch& launch) {
  const unsigned* block = launch.block;
  const std::size_t threads = std::size_t{block[0]} * block[1] * block[2];
  if (threads == 0 || threads > static_cast<std::size_t>(function.max_threads) || block[2] > 64) {
    refuse("%s: a block of %u x %u x %u threads, at most %d", function.name.c_str(), block[0], block[1], block[2],
           function.max_threads);
    return false;
  }
  const std::size_t warps = (threads + 31) / 32;
  const std::size_t registers = warps * 32 * ((function.registers + 7) / 8 * 8);
  if (registers > kRegistersPerMultiprocessor) {
    refuse("%s: %zu threads of %d registers", function.name.c_str(), threads, function.registers);
    return false;
  }
  return true;
}

}  // namespace

bool check_launch(const Function& function, const Launch& launch, void** parameters) {
  ++counters[kLaunches];
  const unsigned* grid = launch.grid;
  const char* name = function.name.c_str();
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) {
    refuse("%s: a grid of %u x %u x %u blocks", name, grid[0], grid[1], grid[2]);
    return false;
  }
  if (launch.dynamic_shared > static_cast<std::size_t>(function.dynamic_limit)) {
    refuse("%s: %zu B of dynamic shared memory, where %d B are allowed", name, launch.dynamic_shared,
           function.dynamic_limit);
    return false;
  }
  const std::size_t threads = std::size_t{launch.block[0]} * launch.block[1] * launch.block[2];
  const std::size_t blocks = std::size_t{grid[0]} * grid[1] * grid[2];
  if (!check_block(function, launch) || !check_cluster(function, launch)) return false;
  if (launch.is_cooperative) {
    const int fitting = active_blocks(function, static_cast<int>(threads), launch.dynamic_shared) * kMultiprocessors;
    if (blocks > static_cast<std::size_t>(fitting)) {
      refuse("%s: a cooperative grid of %zu blocks, where %d fit", name, blocks, fitting);
      return false;
    }
  }
  return parameters == nullptr || check_pointers(function, parameters);
}

int active_blocks(const Function& function, int threads, std::size_t dynamic_shared) {
  const int warps = (threads + 31) / 32;
  if (warps == 0 || threads > function.max_threads) return 0;
  const std::size_t shared = dynamic_shared + function.static_shared + kReservedShared;
  if (shared > kSharedPerMultiprocessor) return 0;
  int blocks = std::min(kBlocksPerMultiprocessor, kThreadsPerMultiprocessor / (warps * 32));
  blocks = std::min(blocks, static_cast<int>(kSharedPerMultiprocessor / shared));
  return std::min(blocks, kRegistersPerMultiprocessor / (warps * 32 * ((function.registers + 7) / 8 * 8)));
}

int attribute(int number) {
  switch (number) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return kSharedPerBlock;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return kSharedPerBlockOptin;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return kSharedPerMultiprocessor;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return kReservedShared;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return kRegistersPerMultiprocessor;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return kRegistersPerMultiprocessor;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 3201000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 6144;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return kMultiprocessors;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return kThreadsPerMultiprocessor;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return kBlocksPerMultiprocessor;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return kL2Bytes;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return 0;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED: return 1;
    default: return 0;
  }
}

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

}  // namespace rehearsal

// For ctypes: how often something has happened so far.
EXPORT long rehearsal_count(int counter) { return rehearsal::counters[counter]; }
