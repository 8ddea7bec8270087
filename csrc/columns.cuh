// Kernels that give each thread columns of its own and take it down the rows: what depends on the column alone, such as
// a bias, is read once and stays in registers, and sums over rows need no thread but those of the same column.
//
// The grid is (columns / columns of a block, groups of rows). A block has kColumnWarps warps; lane l of each holds the
// columns [first_column(), first_column() + kColumns), and the warps take turns at the rows of the group:
//
//                 lane 0   lane 1   ...   lane 31
//     warp 0      row 0 of the group, then row 8, ...
//     warp 1      row 1, then row 9, ...
//
// Sums over rows (dweight, dbias) take two stages without atomics: a block sums its group in an order that depends on
// the sizes alone, and then the groups are summed.
#pragma once

#include "launch.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {

inline constexpr int kColumnWarps = 8;
inline constexpr std::int64_t kMinRowsOfGroup = 4 * kColumnWarps;
inline constexpr std::int64_t kMaxGroups = 65535;  // the limit of gridDim.y

struct RowGroups {
  std::int64_t count, rows;  // rows of each, but perhaps the last
};

inline RowGroups row_groups(std::int64_t rows, std::int64_t max_count) {
  const std::int64_t rows_of_group = std::max(kMinRowsOfGroup, ceil_div(rows, max_count));
  return {ceil_div(rows, rows_of_group), rows_of_group};
}

template <int kColumns>
LaunchShape column_shape(std::int64_t n, std::int64_t groups) {
  const auto blocks = static_cast<unsigned>(ceil_div(n, kWarpSize * kColumns));
  return {dim3(blocks, static_cast<unsigned>(groups)), kColumnWarps * kWarpSize,
          kColumnWarps * kWarpSize * sizeof(Floats<kColumns>)};
}

template <int kColumns>
__device__ std::int64_t first_column() {
  return (std::int64_t{blockIdx.x} * kWarpSize + threadIdx.x % kWarpSize) * kColumns;
}

// Calls visit(row) for this warp's rows of the block's group.
template <class Visit>
__device__ void for_each_row(std::int64_t rows, std::int64_t rows_of_group, Visit visit) {
  const std::int64_t first_row = blockIdx.y * rows_of_group;
  const std::int64_t past_row = first_row + rows_of_group < rows ? first_row + rows_of_group : rows;
  for (std::int64_t row = first_row + threadIdx.x / kWarpSize; row < past_row; row += kColumnWarps) visit(row);
}

// The sum of each column over the block's warps, in the threads of the first warp.
template <int kColumns>
__device__ Floats<kColumns> sum_over_warps(const Floats<kColumns>& own) {
  auto* columns = shared_memory<Floats<kColumns>>();  // (kColumnWarps, kWarpSize)
  columns[threadIdx.x] = own;
  __syncthreads();
  Floats<kColumns> sum = {};
  for (int warp = 0; threadIdx.x < kWarpSize && warp < kColumnWarps; ++warp) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sum[i] += columns[warp * kWarpSize + threadIdx.x][i];
  }
  __syncthreads();  // the next sum is written where the first warp may still read
  return sum;
}

// Writes the block's sum of each column to its group's row of `partials`.
template <int kColumns>
__device__ void store_partials(float* partials,  // (gridDim.y, n), or null where the sums are not wanted
                               std::int64_t n, const Floats<kColumns>& own) {
  if (partials == nullptr) return;
  const Floats<kColumns> sum = sum_over_warps(own);
  const std::int64_t column = first_column<kColumns>();
  if (threadIdx.x >= kWarpSize || column >= n) return;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) partials[blockIdx.y * n + column + i] = sum[i];
}

template <class W>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    sum_partials_kernel(const float* __restrict__ partials,  // (groups, n)
                        W* __restrict__ total,               // (n,)
                        std::int64_t groups, std::int64_t n) {
  const std::int64_t column = first_column<1>();
  Floats<1> own = {};
  for (std::int64_t group = threadIdx.x / kWarpSize; column < n && group < groups; group += kColumnWarps) {
    own[0] += partials[group * n + column];
  }
  const Floats<1> sum = sum_over_warps(own);
  if (threadIdx.x < kWarpSize && column < n) total[column] = from_float<W>(sum[0]);
}

// The second stage; total: (n,), or null where it is not wanted.
template <class W>
cudaError_t sum_partials(const float* partials, W* total, std::int64_t groups, std::int64_t n, cudaStream_t stream) {
  if (total == nullptr) return cudaSuccess;
  return launch(sum_partials_kernel<W>, column_shape<1>(n, 1), stream, partials, total, groups, n);
}

}  // namespace fusedformer
