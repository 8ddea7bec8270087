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

// Sums over rows are made by blocks of kColumnWarps warps. Lane l of each holds the columns
// [first_column(), first_column() + kColumns); the warps take turns at the rows.
constexpr int kColumnWarps = 8;

template <int kColumns>
__device__ std::int64_t first_column() {
  return (std::int64_t{blockIdx.x} * kWarpSize + threadIdx.x % kWarpSize) * kColumns;
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

template <int kColumns>
constexpr std::size_t column_shared_bytes() {
  return kColumnWarps * kWarpSize * sizeof(Floats<kColumns>);
}

constexpr std::int64_t kMaxPartials = 128;
constexpr std::int64_t kMinRowsOfPartial = 4 * kColumnWarps;

inline std::int64_t rows_of_partial(std::int64_t rows) {
  return std::max(kMinRowsOfPartial, ceil_div(rows, kMaxPartials));
}

std::int64_t layer_norm_bwd_partials(std::int64_t rows) { return ceil_div(rows, rows_of_partial(rows)); }

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
  const std::int64_t first_row = blockIdx.y * rows_of_group;
  const std::int64_t past_row = first_row + rows_of_group < rows ? first_row + rows_of_group : rows;
  Floats<kColumns> dweight = {}, dbias = {};
  for (std::int64_t row = first_row + threadIdx.x / kWarpSize; column < n && row < past_row; row += kColumnWarps) {
    const RowCut cut = {n, 0, n};
    const auto dys = RowReader<T>(dy + row * n, cut).load(Width<kColumns>{}, column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) dbias[i] += dys[i];
    if (dweight_partials == nullptr) continue;  // x is not read for dbias alone
    const auto xs = RowReader<T>(x + row * n, cut).load(Width<kColumns>{}, column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) dweight[i] += dys[i] * ((xs[i] - mean[row]) * rstd[row]);
  }
  const auto store = [&](float* partials, const Floats<kColumns>& own) {
    if (partials == nullptr) return;
    const Floats<kColumns> sum = sum_over_warps(own);
    if (threadIdx.x >= kWarpSize || column >= n) return;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) partials[blockIdx.y * n + column + i] = sum[i];
  };
  store(dweight_partials, dweight);
  store(dbias_partials, dbias);
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

// Calls launch(Type<T>, Type<W>): W is fp32 or T.
template <class Launch>
cudaError_t dispatch_weight(DType dtype, DType weight_dtype, Launch launch) {
  return dispatch(dtype, [&](auto element) {
    if (weight_dtype == DType::kFloat32) return launch(element, Type<float>{});
    return weight_dtype == dtype ? launch(element, element) : cudaErrorInvalidValue;
  });
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

template <int kColumns>
LaunchShape column_shape(std::int64_t n, std::int64_t groups) {
  const auto blocks = static_cast<unsigned>(ceil_div(n, kWarpSize * kColumns));
  return {dim3(blocks, static_cast<unsigned>(groups)), kColumnWarps * kWarpSize, column_shared_bytes<kColumns>()};
}

template <class T>
cudaError_t launch_partials(const T* dy, const T* x, const float* mean, const float* rstd, float* dweight_partials,
                            float* dbias_partials, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  const std::int64_t groups = layer_norm_bwd_partials(rows);
  const auto launch_columns = [&](auto width) {
    constexpr int kColumns = decltype(width)::kCount;
    return launch(layer_norm_bwd_partials_kernel<T, kColumns>, column_shape<kColumns>(n, groups), stream, dy, x, mean,
                  rstd, dweight_partials, dbias_partials, rows, n, rows_of_partial(rows));
  };
  // Neighbouring threads read neighbouring columns of one row: aligned in every row, or else one column each.
  return n % kVectorWidth<T> == 0 ? launch_columns(Width<kVectorWidth<T>>{}) : launch_columns(Width<1>{});
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
    const auto sum_partials = [&](const float* partials, void* total) {
      if (total == nullptr) return cudaSuccess;
      return launch(sum_partials_kernel<W>, column_shape<1>(n, 1), stream, partials, static_cast<W*>(total), groups,
                    n);
    };
    const cudaError_t error = sum_partials(dweight_partials, dweight);
    return error != cudaSuccess ? error : sum_partials(dbias_partials, dbias);
  });
}

}  // namespace fusedformer
