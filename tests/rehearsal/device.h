// The pretended device that driver.cpp and runtime.cpp share: memory, kernels, streams, and what is counted of them.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define SHARED __attribute__((visibility("default")))

namespace rehearsal {

// An H200: compute capability 9.0.
inline constexpr int kMultiprocessors = 132;
inline constexpr int kSharedPerBlock = 48 * 1024;
inline constexpr int kSharedPerBlockOptin = 232448;
inline constexpr int kSharedPerMultiprocessor = 233472;
inline constexpr int kReservedShared = 1024;  // of each block, for the system
inline constexpr int kRegistersPerMultiprocessor = 65536;
inline constexpr int kThreadsPerMultiprocessor = 2048;
inline constexpr int kBlocksPerMultiprocessor = 32;
inline constexpr int kL2Bytes = 60 * 1024 * 1024;
inline constexpr std::size_t kMemoryBytes = std::size_t{141} << 30;
inline constexpr int kVersion = 13000;  // of the driver and of the runtime

// A kernel's parameter, as its cubin describes it.
struct Parameter {
  int index;
  int size;
};

struct Function {
  std::string name;
  int registers = 32;  // of a thread; a guess where the cubin was not read (see runtime.cpp)
  int static_shared = 0;
  int max_threads = 1024;
  int dynamic_limit = kSharedPerBlock;
  bool allows_large_clusters = false;
  std::vector<Parameter> parameters;
};

struct Stream {
  int capture = 0;  // number of the capture it takes part in; 0 where it takes part in none
  int priority = 0;
  bool is_origin = false;
};

struct Event {
  double milliseconds = 0;
  int capture = 0;
  bool is_timed = true;
};

struct Launch {
  unsigned grid[3];
  unsigned block[3];
  unsigned cluster[3] = {1, 1, 1};
  std::size_t dynamic_shared;
  bool is_cooperative = false;
};

// What rehearse.py reads.
enum Counter { kLaunches, kSynchronisations, kAllocations, kCopies, kRefusals, kDescriptors, kGraphs, kCounters };
SHARED extern std::atomic<long> counters[kCounters];

// Says on stderr why a call is refused, and counts it.
SHARED void refuse(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Device memory: host memory at addresses that nothing else has and that are not given out twice.
SHARED void* allocate(std::size_t bytes);  // zeros; null where the device is full
SHARED bool release(void* address);
SHARED std::size_t used_bytes();
SHARED bool is_device_address(std::uintptr_t address);
// Bytes from the address to the end of the allocation around it; 0 where there is none.
SHARED std::size_t bytes_from(std::uintptr_t address);

// The stream of a handle: null, 1 and 2 are the default streams.
SHARED Stream* stream_of(const void* handle);
SHARED int begin_capture(Stream* stream);
SHARED void end_capture(Stream* stream);
SHARED void leave_capture(Stream* stream);
SHARED int open_capture();  // the number of the capture that is going on; 0 if none is

// Counts a synchronisation; false, after a refusal, where what it waits for is being captured.
SHARED bool synchronise(const char* call, bool is_captured);

// Refuses what the driver documents it would; `parameters` may be null.
SHARED bool check_launch(const Function& function, const Launch& launch, void** parameters);
SHARED bool set_dynamic_limit(Function& function, int bytes);
SHARED int active_blocks(const Function& function, int threads, std::size_t dynamic_shared);

SHARED int attribute(int number);  // CUdevice_attribute, whose numbers are those of cudaDeviceAttr
SHARED double now();  // milliseconds

// The kernels of a cubin.
std::vector<Function*> read_cubin(const void* image);

}  // namespace rehearsal
