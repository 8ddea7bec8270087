// Stands in for CUDA's header of the same name when g++ compiles the kernels: the part of the language and of the
// runtime that they use.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __host__
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

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline emulator::LaunchShape shape_of(const cudaLaunchConfig_t& config) {
  const unsigned cluster = config.numAttrs == 0 ? 1 : config.attrs[0].val.clusterDim.x;
  return {config.gridDim, config.blockDim, config.dynamicSmemBytes, cluster};
}

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13
};

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  const auto address = reinterpret_cast<const void*>(kernel);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return emulator::allow_shared_bytes(address, value) ? cudaSuccess : cudaErrorInvalidValue;
  }
  if (value != 0) emulator::allow_large_clusters(address);
  return cudaSuccess;
}

// None where the GPU of $FUSEDFORMER_EMULATED_GPU has no room for one.
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel*, const cudaLaunchConfig_t* config) {
  const auto gpu = emulator::numbers_of<3>("FUSEDFORMER_EMULATED_GPU");
  *clusters = !gpu || shape_of(*config).cluster <= static_cast<unsigned>((*gpu)[2]);
  return cudaSuccess;
}

// Runs the kernel to its end; unlike CUDA, throws what it found wrong.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const emulator::LaunchShape shape = shape_of(*config);
  const auto address = reinterpret_cast<const void*>(kernel);
  if (!emulator::is_valid(address, shape)) return cudaErrorInvalidConfiguration;
  emulator::run_grid(address, shape, [&] { kernel(args...); });
  return cudaSuccess;
}
