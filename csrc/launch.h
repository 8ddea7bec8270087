// From run-time types and sizes to a kernel launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <initializer_list>

#include "device.h"
#include "ops.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {

// A C++ type as a value.
template <class T>
struct Type {
  using type = T;
};

// Calls launch(Type<T>) with the element type that dtype names.
template <class Launch>
cudaError_t dispatch(DType dtype, Launch launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(Type<float>{});
    case DType::kFloat16:
      return launch(Type<__half>{});
    case DType::kBFloat16:
      return launch(Type<__nv_bfloat16>{});
  }
  return cudaErrorInvalidValue;
}

// Calls launch(Type<T>, Type<W>) with the types of an input and of its weight or bias, which is fp32 or T.
template <class Launch>
cudaError_t dispatch_weight(DType dtype, DType weight_dtype, Launch launch) {
  return dispatch(dtype, [&](auto element) {
    if (weight_dtype == DType::kFloat32) return launch(element, Type<float>{});
    return weight_dtype == dtype ? launch(element, element) : cudaErrorInvalidValue;
  });
}

// Whether vectors of T can be read and written at all of these addresses, and at any multiple of `stride` elements from
// them.
template <class T>
bool allows_vectors(std::int64_t stride, std::initializer_list<const void*> addresses) {
  return stride % kVectorWidth<T> == 0 && std::all_of(addresses.begin(), addresses.end(), is_vector_aligned);
}

// Calls launch(Width<elements that a thread takes at once>): a vector, or a single one, which its neighbour follows.
template <class T, class Launch>
cudaError_t dispatch_width(bool vectors, Launch launch) {
  return vectors ? launch(Width<kVectorWidth<T>>{}) : launch(Width<1>{});
}

struct LaunchShape {
  dim3 grid;
  unsigned threads;  // of a block
  std::size_t shared_bytes = 0;
};

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Enough blocks for `work` items, unless that is so many that each block had better loop.
inline unsigned grid_for(std::int64_t work, std::int64_t work_per_block) {
  return static_cast<unsigned>(std::min(ceil_div(work, work_per_block), kMaxBlocks));
}

// Chooses how many threads share a row of n elements and calls launch(Type<WarpPerRow or BlockPerRow>, shape), where
// Value is what the kernel reduces over a row.
template <class Value, class Launch>
cudaError_t dispatch_row(std::int64_t rows, std::int64_t n, Launch launch) {
  constexpr int kLongestWarpRow = 1024, kLongestSmallBlockRow = 8192;
  constexpr unsigned kWarpsOfRows = 4, kSmallBlock = 256, kLargeBlock = 1024;
  if (rows == 0) return cudaSuccess;
  if (n <= kLongestWarpRow) {
    const LaunchShape shape = {dim3(grid_for(rows, kWarpsOfRows)), kWarpsOfRows * kWarpSize,
                               WarpPerRow::kSharedBytes<Value>};
    return launch(Type<WarpPerRow>{}, shape);
  }
  const LaunchShape shape = {dim3(grid_for(rows, 1)), n <= kLongestSmallBlockRow ? kSmallBlock : kLargeBlock,
                             BlockPerRow::kSharedBytes<Value>};
  return launch(Type<BlockPerRow>{}, shape);
}

}  // namespace fusedformer
