// Softmax over the last dimension and its gradient.
//
//     y_i  = exp(x_i - max(x)) / sum_j exp(x_j - max(x))          dx_i = y_i (dy_i - sum_j dy_j y_j)
//
// Each pass over a row streams it from memory, the second one from cache while the row fits there. Ideal traffic:
// 2 elements read and written each forward, 3 backward. The forward keeps max and sum in one pass (Milakov and
// Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3).
//
// A row of -inf alone gives 0 and gradient 0; a NaN or +inf makes its row NaN, and no other.
#include "launch.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {
namespace {

// The largest of some numbers and the sum of their exponentials relative to it.
struct MaxSum {
  float max = -INFINITY;
  float sum = 0.0f;

  // What is subtracted in exponents: while only -inf was seen, not max, for -inf - -inf is NaN.
  __device__ float shift() const { return max == -INFINITY ? 0.0f : max; }

  // The larger side keeps its sum as it is, so merge(a, b) and merge(b, a) give the same bits.
  __device__ void merge(const MaxSum& other) {
    const bool keep = max >= other.max;
    const MaxSum larger = keep ? *this : other;
    const MaxSum smaller = keep ? other : *this;
    max = larger.max;
    sum = larger.sum + smaller.sum * expf(smaller.max - larger.shift());
  }

  template <int kColumns>
  __device__ void add(const Floats<kColumns>& x) {
    MaxSum chunk;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) chunk.max = fmaxf(chunk.max, x[i]);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) chunk.sum += expf(x[i] - chunk.shift());
    merge(chunk);
  }
};

}  // namespace

template <class T, class Team>
__global__ void __launch_bounds__(1024)
    softmax_fwd_kernel(const T* __restrict__ x,  // (rows, n)
                       T* __restrict__ y,        // (rows, n)
                       std::int64_t rows, std::int64_t n) {
  const Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const RowCut cut = cut_row(y + row * n, n);
    const RowReader<T> x_row(x + row * n, cut);
    const RowWriter<T> y_row(y + row * n);

    MaxSum total;
    for_each_column<T>(team, cut, [&](auto width, std::int64_t column) { total.add(x_row.load(width, column)); });
    total = team.reduce(total);

    const float shift = total.shift();
    const float scale = total.sum == 0.0f ? 0.0f : 1.0f / total.sum;  // 0 only if every element is -inf
    for_each_column<T>(team, cut, [&](auto width, std::int64_t column) {
      auto values = x_row.load(width, column);
#pragma unroll
      for (float& value : values.values) value = expf(value - shift) * scale;
      y_row.store(column, values);
    });
  }
}

template <class T, class Team>
__global__ void __launch_bounds__(1024)
    softmax_bwd_kernel(const T* __restrict__ dy,  // (rows, n)
                       const T* __restrict__ y,   // (rows, n)
                       T* __restrict__ dx,        // (rows, n)
                       std::int64_t rows, std::int64_t n) {
  const Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const RowCut cut = cut_row(dx + row * n, n);
    const RowReader<T> dy_row(dy + row * n, cut), y_row(y + row * n, cut);
    const RowWriter<T> dx_row(dx + row * n);

    Sums<1> dot;
    for_each_column<T>(team, cut, [&](auto width, std::int64_t column) {
      const auto dy_values = dy_row.load(width, column), y_values = y_row.load(width, column);
#pragma unroll
      for (int i = 0; i < width.kCount; ++i) dot.values[0] += dy_values[i] * y_values[i];
    });
    dot = team.reduce(dot);

    for_each_column<T>(team, cut, [&](auto width, std::int64_t column) {
      auto values = dy_row.load(width, column);
      const auto y_values = y_row.load(width, column);
#pragma unroll
      for (int i = 0; i < width.kCount; ++i) values[i] = y_values[i] * (values[i] - dot.values[0]);
      dx_row.store(column, values);
    });
  }
}

cudaError_t softmax_fwd(DType dtype, const void* x, void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<MaxSum>(rows, n, [&](auto team, const LaunchShape& shape) {
      return launch(softmax_fwd_kernel<T, typename decltype(team)::type>, shape, stream, static_cast<const T*>(x),
                    static_cast<T*>(y), rows, n);
    });
  });
}

cudaError_t softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                        cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<Sums<1>>(rows, n, [&](auto team, const LaunchShape& shape) {
      return launch(softmax_bwd_kernel<T, typename decltype(team)::type>, shape, stream, static_cast<const T*>(dy),
                    static_cast<const T*>(y), static_cast<T*>(dx), rows, n);
    });
  });
}

}  // namespace fusedformer
