// LayerNorm over the last dimension and its gradients.
//
//     y = (x - mean) rstd weight + bias,  mean = sum_j x_j / n,  rstd = 1 / sqrt(sum_j (x_j - mean)^2 / n + eps)
//
// with x_hat = (x - mean) rstd and g = dy weight:
//
//     dx = rstd (g - mean_j(g) - x_hat mean_j(g x_hat)),  dweight = sum_rows dy x_hat,  dbias = sum_rows dy
//
// The variance is of the centred row, in a second pass, for E[x^2] - E[x]^2 loses every digit at a large mean. The
// sums over rows take two stages without atomics: each group of rows is summed by one block, in an order that depends
// on the number of rows alone, and then the groups are. Traffic, in elements of a row that is held (row.cuh): 2
// forward; backward 3 for dx, and again 2 for dweight and dbias together, 1 for dbias alone.
// Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
#include "columns.cuh"
#include "launch.h"
#include "row.cuh"

namespace fusedformer {

template <class T, class W, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    layer_norm_fwd_kernel(const T* __restrict__ x,       // (rows, n)
                          const W* __restrict__ weight,  // (n,) or null
                          const W* __restrict__ bias,    // (n,) or null
                          T* __restrict__ y,             // (rows, n)
                          float* __restrict__ mean,      // (rows,)
                          float* __restrict__ rstd,      // (rows,)
                          std::int64_t rows, std::int64_t n, float eps) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, y + row * n, n);
    const Row<T, Shape> x_row(x + row * n, columns);
    const ParameterReader<W> weight_row(weight, columns.cut(), 1.0f), bias_row(bias, columns.cut(), 0.0f);
    const RowWriter<T> y_row(y + row * n);

    Sums<1> sum;
    columns.for_each([&](auto place) {
#pragma unroll
      for (const float value : x_row.load(place).values) sum.values[0] += value;
    });
    const float row_mean = team.reduce(sum).values[0] / n;

    Sums<1> squares;
    columns.for_each([&](auto place) {
#pragma unroll
      for (const float value : x_row.load(place).values) {
        squares.values[0] += (value - row_mean) * (value - row_mean);
      }
    });
    const float row_rstd = 1.0f / sqrtf(team.reduce(squares).values[0] / n + eps);

    columns.for_each([&](auto place) {
      auto values = x_row.load(place);
      const auto weights = weight_row.load(place), biases = bias_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) values[i] = (values[i] - row_mean) * row_rstd * weights[i] + biases[i];
      y_row.store(place.column, values);
    });
    if (team.thread() == 0) {
      mean[row] = row_mean;
      rstd[row] = row_rstd;
    }
  }
}

template <class T, class W, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    layer_norm_bwd_input_kernel(const T* __restrict__ dy,        // (rows, n)
                                const T* __restrict__ x,         // (rows, n)
                                const W* __restrict__ weight,    // (n,) or null
                                const float* __restrict__ mean,  // (rows,)
                                const float* __restrict__ rstd,  // (rows,)
                                T* __restrict__ dx,              // (rows, n)
                                std::int64_t rows, std::int64_t n) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, dx + row * n, n);
    const Row<T, Shape> dy_row(dy + row * n, columns), x_row(x + row * n, columns);
    const ParameterReader<W> weight_row(weight, columns.cut(), 1.0f);
    const RowWriter<T> dx_row(dx + row * n);
    const float row_mean = mean[row], row_rstd = rstd[row];

    Sums<2> sums;  // of g and of g x_hat
    columns.for_each([&](auto place) {
      const auto dys = dy_row.load(place), weights = weight_row.load(place);
      const auto xs = x_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) {
        sums.values[0] += dys[i] * weights[i];
        sums.values[1] += dys[i] * weights[i] * ((xs[i] - row_mean) * row_rstd);
      }
    });
    sums = team.reduce(sums);

    const float mean_g = sums.values[0] / n, mean_g_x_hat = sums.values[1] / n;
    columns.for_each([&](auto place) {
      const auto dys = dy_row.load(place), weights = weight_row.load(place);
      auto values = x_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) {
        const float x_hat = (values[i] - row_mean) * row_rstd;
        values[i] = row_rstd * (dys[i] * weights[i] - mean_g - x_hat * mean_g_x_hat);
      }
      dx_row.store(place.column, values);
    });
  }
}

constexpr std::int64_t kMaxPartials = 128;

std::int64_t layer_norm_bwd_partials(std::int64_t rows) { return row_groups(rows, kMaxPartials).count; }

// Block (., group) sums rows [group rows_of_group, (group + 1) rows_of_group).
template <class T, int kColumns>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    layer_norm_bwd_partials_kernel(const T* __restrict__ dy,              // (rows, n)
                                   const T* __restrict__ x,               // (rows, n)
                                   const float* __restrict__ mean,        // (rows,)
                                   const float* __restrict__ rstd,        // (rows,)
                                   float* __restrict__ dweight_partials,  // (gridDim.y, n) or null
                                   float* __restrict__ dbias_partials,    // (gridDim.y, n) or null
                                   std::int64_t rows, std::int64_t n, std::int64_t rows_of_group) {
  const std::int64_t column = first_column<kColumns>();
  Floats<kColumns> dweight = {}, dbias = {};
  for_each_row(column < n ? rows : 0, rows_of_group, [&](std::int64_t row) {
    const RowCut cut = {n, 0, n};
    const auto dys = RowReader<T>(dy + row * n, cut).load(Width<kColumns>{}, column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) dbias[i] += dys[i];
    if (dweight_partials == nullptr) return;  // x is not read for dbias alone
    const auto xs = RowReader<T>(x + row * n, cut).load(Width<kColumns>{}, column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) dweight[i] += dys[i] * ((xs[i] - mean[row]) * rstd[row]);
  });
  store_partials(dweight_partials, n, dweight);
  store_partials(dbias_partials, n, dbias);
}

cudaError_t layer_norm_fwd(DType dtype, DType weight_dtype, const void* x, const void* weight, const void* bias,
                           float eps, void* y, float* mean, float* rstd, std::int64_t rows, std::int64_t n,
                           cudaStream_t stream) {
  return dispatch_weight(dtype, weight_dtype, [&](auto element, auto weight_element) {
    using T = typename decltype(element)::type;
    using W = typename decltype(weight_element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(layer_norm_fwd_kernel<T, W, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(x), static_cast<const W*>(weight), static_cast<const W*>(bias),
                    static_cast<T*>(y), mean, rstd, rows, n, eps);
    });
  });
}

cudaError_t layer_norm_bwd_input(DType dtype, DType weight_dtype, const void* dy, const void* x, const void* weight,
                                 const float* mean, const float* rstd, void* dx, std::int64_t rows, std::int64_t n,
                                 cudaStream_t stream) {
  return dispatch_weight(dtype, weight_dtype, [&](auto element, auto weight_element) {
    using T = typename decltype(element)::type;
    using W = typename decltype(weight_element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(layer_norm_bwd_input_kernel<T, W, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const W*>(weight), mean, rstd,
                    static_cast<T*>(dx), rows, n);
    });
  });
}

namespace {

template <class T>
cudaError_t launch_partials(const T* dy, const T* x, const float* mean, const float* rstd, float* dweight_partials,
                            float* dbias_partials, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  const RowGroups groups = row_groups(rows, kMaxPartials);
  const auto launch_columns = [&](auto width) {
    constexpr int kColumns = decltype(width)::kCount;
    return launch(layer_norm_bwd_partials_kernel<T, kColumns>, column_shape<kColumns>(n, groups.count), stream, dy, x,
                  mean, rstd, dweight_partials, dbias_partials, rows, n, groups.rows);
  };
  // Neighbouring threads read neighbouring columns of one row: aligned in every row, or else one column each.
  return dispatch_width<T>(n % kVectorWidth<T> == 0, launch_columns);
}

}  // namespace

cudaError_t layer_norm_bwd_weight(DType dtype, DType weight_dtype, const void* dy, const void* x, const float* mean,
                                  const float* rstd, float* dweight_partials, float* dbias_partials, void* dweight,
                                  void* dbias, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  if (n == 0 || (dweight == nullptr && dbias == nullptr)) return cudaSuccess;
  return dispatch_weight(dtype, weight_dtype, [&](auto element, auto weight_element) {
    using T = typename decltype(element)::type;
    using W = typename decltype(weight_element)::type;
    const std::int64_t groups = layer_norm_bwd_partials(rows);
    if (groups > 0) {
      const cudaError_t error = launch_partials(static_cast<const T*>(dy), static_cast<const T*>(x), mean, rstd,
                                                dweight_partials, dbias_partials, rows, n, stream);
      if (error != cudaSuccess) return error;
    }
    const cudaError_t error = sum_partials(dweight_partials, static_cast<W*>(dweight), groups, n, stream);
    return error != cudaSuccess ? error : sum_partials(dbias_partials, static_cast<W*>(dbias), groups, n, stream);
  });
}

}  // namespace fusedformer
