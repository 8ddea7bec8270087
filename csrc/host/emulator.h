// CUDA blocks on a CPU: each thread of a block is a fiber, and a scheduler that means ill decides which one runs.
//
// A fiber runs until it meets others (a barrier, a shuffle); then any fiber that can go on may be next. Shared memory
// starts each block as NaN. So a missing barrier, a stale value or a lane left out of a mask shows in the result
// or as an error, not only on the GPU where timing happens to bring it out. Every choice follows from a seed:
// FUSEDFORMER_EMULATION_SEED, else one drawn for the process; errors name it. (A kernel that spins until another thread
// writes would spin for ever: only meeting others lets them run.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

namespace emulator {

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

struct LaunchShape {
  Index3 grid, block;
  std::size_t shared_bytes = 0;
};

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kMaxThreads = 1024;          // of a block
inline constexpr std::size_t kMaxSharedBytes = 49152;  // of a block that has not asked for more

// Whether CUDA would launch it.
bool is_valid(const LaunchShape& shape);

// Runs `thread` once for every thread of the grid, block after block in an order drawn from the seed. Throws
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

// The calling thread's place in its warp.
unsigned lane();

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& message);

}  // namespace emulator
