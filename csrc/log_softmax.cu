// Logarithm of the softmax over the last dimension, and its gradient.
//
//     y_i = x_i - max(x) - log sum_j exp(x_j - max(x))          dx_i = dy_i - exp(y_i) sum_j dy_j
//
// Traffic, in elements of a row that is held (row.cuh): 2 forward, 3 backward. As softmax.cu, of which it is the
// logarithm: -inf for a row of -inf alone; a NaN or +inf makes its row NaN, and no other.
#include "launch.h"
#include "max_sum.cuh"
#include "row.cuh"

namespace fusedformer {

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    log_softmax_fwd_kernel(const T* __restrict__ x,  // (rows, n)
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

    // Two subtractions: their sum would lose the digits of the smaller one.
    const float shift = total.shift(), log_sum = total.sum == 0.0f ? 0.0f : logf(total.sum);
    columns.for_each([&](auto place) {
      auto values = x_row.load(place);
#pragma unroll
      for (float& value : values.values) value = value - shift - log_sum;
      y_row.store(place.column, values);
    });
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    log_softmax_bwd_kernel(const T* __restrict__ dy,  // (rows, n)
                           const T* __restrict__ y,   // (rows, n)
                           T* __restrict__ dx,        // (rows, n)
                           std::int64_t rows, std::int64_t n) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, dx + row * n, n);
    const Row<T, Shape> dy_row(dy + row * n, columns), y_row(y + row * n, columns);
    const RowWriter<T> dx_row(dx + row * n);

    Sums<1> sum;
    columns.for_each([&](auto place) {
#pragma unroll
      for (const float value : dy_row.load(place).values) sum.values[0] += value;
    });
    sum = team.reduce(sum);

    columns.for_each([&](auto place) {
      auto values = dy_row.load(place);
      const auto y_values = y_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) values[i] -= exp_for<T>(y_values[i]) * sum.values[0];
      dx_row.store(place.column, values);
    });
  }
}

cudaError_t log_softmax_fwd(DType dtype, const void* x, void* y, std::int64_t rows, std::int64_t n,
                            cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(log_softmax_fwd_kernel<T, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(x), static_cast<T*>(y), rows, n);
    });
  });
}

cudaError_t log_softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                            cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(log_softmax_bwd_kernel<T, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<T*>(dx), rows, n);
    });
  });
}

}  // namespace fusedformer
