// LayerNorm and RMSNorm over the last dimension and their gradients, also of a sum that is made on the way.
//
//     y = x_hat weight + bias,  x_hat = (x - mean) rstd,  rstd = 1 / sqrt(mean_j((x - mean)^2) + eps)
//
// where RMSNorm, which is not centred, has 0 for the mean and no bias. With g = dy weight:
//
//     dx = rstd (g - mean_j(g) - x_hat mean_j(g x_hat)),  dweight = sum_rows dy x_hat,  dbias = sum_rows dy
//
// where RMSNorm lacks mean_j(g). A norm that adds is of s = dropout(x) + residual, which is rounded to x's type first
// and is an output too, with a gradient ds of its own:
//
//     dresidual = (the dx above, for s) + ds,  dx = dropout's mask times dresidual
//
// The variance is of the centred row, in a second pass, for E[x^2] - E[x]^2 loses every digit at a large mean. Traffic,
// in elements of a row that is held (row.cuh): 2 forward, 4 if it adds; backward 3 with dweight and dbias where all rows
// are aligned alike (column_sums.cuh), else dy and x are read again for them; 1 more each for ds and for dropout.
// Source: Ba, Kiros and Hinton, "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer
// Normalization", 2019.
#pragma once

#include "column_sums.cuh"
#include "dropout.cuh"
#include "launch.h"
#include "row.cuh"

namespace fusedformer {

struct Centred {
  static constexpr bool kIsCentred = true;
  static constexpr int kParameters = 2;  // weight and bias
};

struct Uncentred {
  static constexpr bool kIsCentred = false;
  static constexpr int kParameters = 1;
};

// Blocks to a processor, as Shape::kBlocks: fewer where dropout's counters or the sums' addresses are in registers too.
// What adds has the bytes of two tensors in flight, and can do with fewer.
template <class Shape>
inline constexpr int kAddingBlocks = Shape::kHeld == 1                                                  ? 6
                                     : Shape::Team::kKind == TeamKind::kBlocks && Shape::kHeld == 4 ? 2
                                                                                                    : Shape::kBlocks;
template <class Shape>
inline constexpr int kSummingBlocks =
    Shape::Team::kKind == TeamKind::kLanes ? std::min(Shape::kBlocks, Shape::kHeld == 1 ? 5 : 4) : Shape::kBlocks;

// One row of s = dropout(x) + residual, rounded to T; used as a Row.
template <class T, class Shape>
class SumRow {
 public:
  __device__ SumRow(const T* x, const T* residual, const Columns<T, Shape>& columns, const RowDropout& dropout)
      : x_(x, columns), residual_(residual, columns), dropout_(dropout) {
    if constexpr (Shape::kHeld > 0) {
      columns.for_each([&](auto place) { x_.replace(place, add(place)); });
    }
  }

  template <int kColumns>
  __device__ Floats<kColumns> load(const Place<kColumns>& place) const {
    if constexpr (Shape::kHeld > 0) {
      return x_.load(place);
    } else {
      auto sums = add(place);
#pragma unroll
      for (float& sum : sums.values) sum = to_float(from_float<T>(sum));
      return sums;
    }
  }

 private:
  template <int kColumns>
  __device__ Floats<kColumns> add(const Place<kColumns>& place) const {
    auto sums = dropout_.apply(x_.load(place), place.column);
    const auto residuals = residual_.load(place);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) sums[i] += residuals[i];
    return sums;
  }

  Row<T, Shape> x_, residual_;  // x_ becomes s where it is held
  const RowDropout& dropout_;
};

template <class Norm, bool kAdds, class T, class W, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, kAdds ? kAddingBlocks<Shape> : Shape::kBlocks)
    norm_fwd_kernel(const T* __restrict__ x,         // (rows, n)
                    const T* __restrict__ residual,  // (rows, n) if kAdds
                    const W* __restrict__ weight,    // (n,) or null
                    const W* __restrict__ bias,      // (n,) or null
                    T* __restrict__ y,               // (rows, n) contiguous
                    T* __restrict__ s,               // (rows, n) contiguous, if kAdds
                    float* __restrict__ mean,        // (rows,), if centred
                    float* __restrict__ rstd,        // (rows,)
                    std::int64_t rows, std::int64_t n, std::int64_t x_stride, std::int64_t residual_stride, float eps,
                    Dropout dropout) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, y + row * n, n);
    const RowDropout row_dropout(dropout, row);
    const auto values_row = [&] {
      if constexpr (kAdds) {
        return SumRow<T, Shape>(x + row * x_stride, residual + row * residual_stride, columns, row_dropout);
      } else {
        return Row<T, Shape>(x + row * x_stride, columns);
      }
    }();
    const ParameterReader<W> weight_row(weight, columns.cut(), 1.0f), bias_row(bias, columns.cut(), 0.0f);
    const RowWriter<T> y_row(y + row * n), s_row(s + row * n);

    float row_mean = 0.0f;
    if constexpr (Norm::kIsCentred) {
      Sums<1> sum;
      columns.for_each([&](auto place) {
#pragma unroll
        for (const float value : values_row.load(place).values) sum.values[0] += value;
      });
      row_mean = team.reduce(sum).values[0] / n;
    }

    Sums<1> squares;
    columns.for_each([&](auto place) {
#pragma unroll
      for (const float value : values_row.load(place).values) {
        squares.values[0] += (value - row_mean) * (value - row_mean);
      }
    });
    const float row_rstd = 1.0f / sqrtf(team.reduce(squares).values[0] / n + eps);

    columns.for_each([&](auto place) {
      auto values = values_row.load(place);
      if constexpr (kAdds) s_row.store(place.column, values);
      for_each_part<W>(place, [&](auto part, int first) {
        const auto weights = weight_row.load(part);
#pragma unroll
        for (int i = 0; i < part.kCount; ++i) {
          values[first + i] = (values[first + i] - row_mean) * row_rstd * weights[i];
        }
        if constexpr (Norm::kIsCentred) {
          const auto biases = bias_row.load(part);
#pragma unroll
          for (int i = 0; i < part.kCount; ++i) values[first + i] += biases[i];
        }
      });
      y_row.store(place.column, values);
    });
    if (team.thread() == 0) {
      if constexpr (Norm::kIsCentred) mean[row] = row_mean;
      rstd[row] = row_rstd;
    }
  }
}

// Of either, for what a norm that adds has besides is asked for where it is used: twice the kernels would save nothing.
template <class Norm, class T, class W, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, kSummingBlocks<Shape>)
    norm_bwd_kernel(const T* __restrict__ dy,              // (rows, n)
                    const T* __restrict__ ds,              // (rows, n) contiguous, aligned as dx is, or null
                    const T* __restrict__ x,               // (rows, n): s of a norm that adds
                    const W* __restrict__ weight,          // (n,) or null
                    const float* __restrict__ mean,        // (rows,), if centred
                    const float* __restrict__ rstd,        // (rows,)
                    T* __restrict__ dx,                    // (rows, n) contiguous: dresidual of a norm that adds
                    T* __restrict__ dx_of_dropout,         // (rows, n) contiguous, with dropout
                    float* __restrict__ dweight_partials,  // (teams, n) or null
                    float* __restrict__ dbias_partials,    // (teams, n) or null
                    std::int64_t rows, std::int64_t n, std::int64_t dy_stride, std::int64_t x_stride,
                    Dropout dropout) {
  typename Shape::Team team;
  ColumnSums<T, Shape> dweight(team, 0, dweight_partials);
  ColumnSums<T, Shape> dbias(team, 1, Norm::kIsCentred ? dbias_partials : nullptr);
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, dx + row * n, n);
    const Row<T, Shape> dy_row(dy + row * dy_stride, columns), x_row(x + row * x_stride, columns);
    const ParameterReader<W> weight_row(weight, columns.cut(), 1.0f);
    const RowWriter<T> dx_row(dx + row * n), dx_of_dropout_row(dx_of_dropout + row * n);
    const float row_mean = Norm::kIsCentred ? mean[row] : 0.0f, row_rstd = rstd[row];

    Sums<Norm::kParameters> sums;  // of g x_hat, and of g
    columns.for_each([&](auto place) {
      const auto dys = dy_row.load(place);
      dbias.add(place, dys);
      auto values = x_row.load(place);
      for_each_part<W>(place, [&](auto part, int first) {
        const auto weights = weight_row.load(part);
#pragma unroll
        for (int i = 0; i < part.kCount; ++i) {
          const float dy_value = dys[first + i];
          values[first + i] = dy_value * ((values[first + i] - row_mean) * row_rstd);
          sums.values[0] += values[first + i] * weights[i];
          if constexpr (Norm::kIsCentred) sums.values[1] += dy_value * weights[i];
        }
      });
      dweight.add(place, values);
    });
    sums = team.reduce(sums);

    const float mean_g_x_hat = sums.values[0] / n, mean_g = Norm::kIsCentred ? sums.values[Norm::kIsCentred] / n : 0.0f;
    const RowDropout row_dropout(dropout, row);
    columns.for_each([&](auto place) {
      const auto dys = dy_row.load(place);
      auto values = x_row.load(place);
      for_each_part<W>(place, [&](auto part, int first) {
        const auto weights = weight_row.load(part);
#pragma unroll
        for (int i = 0; i < part.kCount; ++i) {
          float& value = values[first + i];
          const float x_hat = (value - row_mean) * row_rstd;
          value = row_rstd * (dys[first + i] * weights[i] - mean_g - x_hat * mean_g_x_hat);
        }
      });
      if (ds != nullptr) {
        const auto others = load_floats<place.kCount>(ds + row * n + place.column);
#pragma unroll
        for (int i = 0; i < place.kCount; ++i) values[i] += others[i];
      }
      if (row_dropout.is_on()) dx_of_dropout_row.store(place.column, row_dropout.apply(values, place.column));
      dx_row.store(place.column, values);
    });
  }
  dweight.store(team, n);
  dbias.store(team, n);
}

// Sums over rows where these are not aligned alike, or too long for shared memory: dy and x are read again.
template <class Norm, class T, int kColumns>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    norm_bwd_partials_kernel(const T* __restrict__ dy,              // (rows, n)
                             const T* __restrict__ x,               // (rows, n)
                             const float* __restrict__ mean,        // (rows,), if centred
                             const float* __restrict__ rstd,        // (rows,)
                             float* __restrict__ dweight_partials,  // (gridDim.y, n) or null
                             float* __restrict__ dbias_partials,    // (gridDim.y, n) or null
                             std::int64_t rows, std::int64_t n, std::int64_t dy_stride, std::int64_t x_stride,
                             std::int64_t rows_of_group) {
  const std::int64_t column = first_column<kColumns>();
  const RowCut cut = {n, 0, n};
  Floats<kColumns> dweight = {}, dbias = {};
  for_each_row(column < n ? rows : 0, rows_of_group, [&](std::int64_t row) {
    const auto dys = RowReader<T>(dy + row * dy_stride, cut).load(Width<kColumns>{}, column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) dbias[i] += dys[i];
    if (dweight_partials == nullptr) return;  // x is not read for dbias alone
    const auto xs = RowReader<T>(x + row * x_stride, cut).load(Width<kColumns>{}, column);
    const float row_mean = Norm::kIsCentred ? mean[row] : 0.0f;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) dweight[i] += dys[i] * ((xs[i] - row_mean) * rstd[row]);
  });
  store_partials(dweight_partials, n, dweight);
  if constexpr (Norm::kIsCentred) store_partials(dbias_partials, n, dbias);
}

}  // namespace fusedformer
