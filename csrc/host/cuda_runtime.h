// Stands in for CUDA's header of the same name when g++ compiles the kernels: the part of the language and of the
// runtime that they use.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __launch_bounds__(...)

using dim3 = emulator::Index3;

// As the fiber that runs sees them.
extern constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulator::block_barrier(where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, std::source_location where = std::source_location::current()) {
  emulator::warp_exchange("__syncwarp", mask, 0, emulator::lane(), where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask,
                  std::source_location where = std::source_location::current()) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulator::warp_exchange("__shfl_xor_sync", mask, bits, emulator::lane() ^ lane_mask, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

// Runs the kernel to its end; unlike CUDA, throws what it found wrong.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const emulator::LaunchShape shape = {config->gridDim, config->blockDim, config->dynamicSmemBytes};
  if (!emulator::is_valid(shape)) return cudaErrorInvalidConfiguration;
  emulator::run_grid(reinterpret_cast<const void*>(kernel), shape, [&] { kernel(args...); });
  return cudaSuccess;
}
