// Softmax over the last dimension and its gradient.
//
//     y_i  = exp(x_i - max(x)) / sum_j exp(x_j - max(x))          dx_i = y_i (dy_i - sum_j dy_j y_j)
//
// One pass keeps max and sum together (max_sum.cuh), so that a row that is streamed is read twice and not three times,
// and a team meets once. Traffic, in elements of a row that is held (row.cuh): 2 forward, 3 backward.
//
// A row of -inf alone gives 0 and gradient 0; a NaN or +inf makes its row NaN, and no other.
#include "launch.h"
#include "max_sum.cuh"
#include "row.cuh"

namespace fusedformer {

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    softmax_fwd_kernel(const T* __restrict__ x,  // (rows, n)
                       T* __restrict__ y,        // (rows, n)
                       std::int64_t rows, std::int64_t n) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, y + row * n, n);
    const Row<T, Shape> x_row(x + row * n, columns);
    const RowWriter<T> y_row(y + row * n);

    MaxSum<T> total;
    columns.for_each([&](auto place) { total.add(x_row.load(place)); });
    total = team.reduce(total);

    const float shift = total.shift();
    const float scale = total.sum == 0.0f ? 0.0f : 1.0f / total.sum;  // 0 only if every element is -inf
    columns.for_each([&](auto place) {
      auto values = x_row.load(place);
#pragma unroll
      for (float& value : values.values) value = exp_for<T>(value - shift) * scale;
      y_row.store(place.column, values);
    });
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    softmax_bwd_kernel(const T* __restrict__ dy,  // (rows, n)
                       const T* __restrict__ y,   // (rows, n)
                       T* __restrict__ dx,        // (rows, n)
                       std::int64_t rows, std::int64_t n) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, dx + row * n, n);
    const Row<T, Shape> dy_row(dy + row * n, columns), y_row(y + row * n, columns);
    const RowWriter<T> dx_row(dx + row * n);

    Sums<1> dot;
    columns.for_each([&](auto place) {
      const auto dy_values = dy_row.load(place), y_values = y_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) dot.values[0] += dy_values[i] * y_values[i];
    });
    dot = team.reduce(dot);

    columns.for_each([&](auto place) {
      auto values = dy_row.load(place);
      const auto y_values = y_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) values[i] = y_values[i] * (values[i] - dot.values[0]);
      dx_row.store(place.column, values);
    });
  }
}

cudaError_t softmax_fwd(DType dtype, const void* x, void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(softmax_fwd_kernel<T, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(x), static_cast<T*>(y), rows, n);
    });
  });
}

cudaError_t softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                        cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(softmax_bwd_kernel<T, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<T*>(dx), rows, n);
    });
  });
}

}  // namespace fusedformer
