// CUDA blocks on a CPU: each thread of a block, and of all blocks of a cluster, is a fiber, and a scheduler that means
// ill decides which one runs.
//
// A fiber runs until it meets others (a barrier, a shuffle); then any fiber that can go on may be next. Shared memory
// starts each block as NaN, and another block's is only there from its first step to its last. So a missing barrier, a
// stale value or a lane left out of a mask shows in the result or as an error, not only on the GPU where timing happens
// to bring it out. Every choice follows from a seed: FUSEDFORMER_EMULATION_SEED, else one drawn for the process; errors
// name it. (A kernel that spins until another thread writes would spin for ever: only meeting others lets them run.)
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <source_location>
#include <string>

namespace emulator {

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

struct LaunchShape {
  Index3 grid, block;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks, along x
};

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kMaxThreads = 1024;          // of a block
inline constexpr unsigned kMaxPortableCluster = 8, kMaxCluster = 16;
inline constexpr std::size_t kMaxSharedBytes = 49152;  // of a block that has not asked for more
inline constexpr std::size_t kMaxAllowedSharedBytes = 232448;

// Whether CUDA would launch the kernel so.
bool is_valid(const void* kernel, const LaunchShape& shape);

// As cudaFuncAttributeNonPortableClusterSizeAllowed does.
void allow_large_clusters(const void* kernel);

// As cudaFuncAttributeMaxDynamicSharedMemorySize does; false where no block can have that much.
bool allow_shared_bytes(const void* kernel, std::size_t bytes);

// The integers in an environment variable that stands for what a GPU would say, if it is set.
template <std::size_t kCount>
std::optional<std::array<int, kCount>> numbers_of(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return std::nullopt;
  std::array<int, kCount> numbers = {};
  char* rest = const_cast<char*>(text);
  for (int& number : numbers) number = static_cast<int>(std::strtol(rest, &rest, 10));
  return numbers;
}

// Runs `thread` once for every thread of the grid, cluster after cluster in an order drawn from the seed. Throws
// std::runtime_error, naming the kernel (by its address), the block and the seed, where a GPU would hang or fault.
void run_grid(const void* kernel, const LaunchShape& shape, const std::function<void()>& thread);

// The rest is called by device code, in a fiber.

void* shared_memory();

// Waits until every thread of the block that has not exited waits at the same line.
void block_barrier(std::source_location where);

// Waits until every lane in `mask` that has not exited waits in the same call of the same line with the same mask,
// then gives the value that lane `source` brought.
std::uint64_t warp_exchange(const char* call, unsigned mask, std::uint64_t value, unsigned source,
                            std::source_location where);

// The two halves of a barrier of all threads of the cluster that have not exited.
void cluster_arrive(std::source_location where);
void cluster_wait(std::source_location where);

unsigned cluster_rank();
unsigned cluster_size();

// Where another block of the cluster has what is at `own` in this one's shared memory. Fails before that block has
// begun and after it has exited.
void* shared_memory_of(unsigned rank, void* own);

// The calling thread's place in its warp.
unsigned lane();

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& message);

}  // namespace emulator
