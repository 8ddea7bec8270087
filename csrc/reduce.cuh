// Teams, that is, the threads that share a row; and reductions over a team.
//
// A value to reduce is a struct of 4-byte fields whose default is the identity and whose `merge` is symmetric bit for
// bit, so that the butterfly leaves the same bits in every thread.
#pragma once

#include <cstring>
#include <type_traits>

#include "device.h"

namespace fusedformer {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxWarps = 32;  // of a block

template <int kCount>
struct Sums {
  float values[kCount] = {};

  __device__ void merge(const Sums& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += other.values[i];
  }
};

template <class Value>
__device__ Value shuffle_xor(const Value& value, int lane_mask) {
  static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) % sizeof(unsigned) == 0);
  unsigned words[sizeof(Value) / sizeof(unsigned)];
  std::memcpy(words, &value, sizeof(Value));
#pragma unroll
  for (unsigned& word : words) word = __shfl_xor_sync(0xffffffffu, word, lane_mask);
  Value out;
  std::memcpy(&out, words, sizeof(Value));
  return out;
}

template <class Value>
__device__ Value reduce_warp(Value value) {
#pragma unroll
  for (int lane_mask = kWarpSize / 2; lane_mask > 0; lane_mask /= 2) value.merge(shuffle_xor(value, lane_mask));
  return value;
}

// Several warps in a block, each with a row of its own: for short rows.
struct WarpPerRow {
  template <class Value>
  static constexpr std::size_t kSharedBytes = 0;

  __device__ int thread() const { return threadIdx.x % kWarpSize; }
  __device__ int threads() const { return kWarpSize; }
  __device__ std::int64_t first_row() const { return blockIdx.x * std::int64_t{warps()} + threadIdx.x / kWarpSize; }
  __device__ std::int64_t row_stride() const { return gridDim.x * std::int64_t{warps()}; }

  template <class Value>
  __device__ Value reduce(const Value& value) const {
    return reduce_warp(value);
  }

 private:
  __device__ unsigned warps() const { return blockDim.x / kWarpSize; }
};

// A block for each row: for long rows.
struct BlockPerRow {
  template <class Value>
  static constexpr std::size_t kSharedBytes = kMaxWarps * sizeof(Value);

  __device__ int thread() const { return threadIdx.x; }
  __device__ int threads() const { return blockDim.x; }
  __device__ std::int64_t first_row() const { return blockIdx.x; }
  __device__ std::int64_t row_stride() const { return gridDim.x; }

  template <class Value>
  __device__ Value reduce(const Value& value) const {
    Value* warp_values = shared_memory<Value>();
    const int lane = threadIdx.x % kWarpSize;
    const Value warp_value = reduce_warp(value);
    if (lane == 0) warp_values[threadIdx.x / kWarpSize] = warp_value;
    __syncthreads();
    const Value total = reduce_warp(lane < threads() / kWarpSize ? warp_values[lane] : Value{});
    __syncthreads();  // the next reduction writes where other warps may still read
    return total;
  }
};

// All threads of the grid, on one array: for what is computed element by element.
struct WholeGrid {
  __device__ std::int64_t thread() const { return blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; }
  __device__ std::int64_t threads() const { return gridDim.x * std::int64_t{blockDim.x}; }
};

}  // namespace fusedformer
