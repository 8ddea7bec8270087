// Softmax of scaled and masked scores over the last dimension, and its gradient.
//
//     s = scale x + mask, -inf where hidden          y = softmax(s)          dx_i = scale y_i (dy_i - sum_j dy_j y_j)
//
// Hidden is what a boolean mask has false, an additive one -inf, and, if causal, what lies right of the diagonal that
// ends in the last column of the last query. What is hidden is 0 and has gradient 0, whatever x and dy hold there, NaN
// too; so has a row that sees nothing. Traffic, in elements of a row that is held (row.cuh): 2 and the mask forward, 3
// backward; of what causal hides, 1 each, for it is only written. Otherwise as softmax.cu.
#include "launch.h"
#include "max_sum.cuh"
#include "row.cuh"
#include "strides.cuh"

namespace fusedformer {
namespace {

// How many columns a row sees, which are the first ones: all if `queries`, the number of rows of a matrix, is 0.
__device__ std::int64_t visible_columns(std::int64_t row, std::int64_t n, std::int64_t queries) {
  if (queries == 0) return n;
  const bool is_short = (row | queries) >> 32 == 0;  // a 64-bit division is a subroutine
  const std::int64_t query =
      is_short ? static_cast<unsigned>(row) % static_cast<unsigned>(queries) : row % queries;
  const std::int64_t visible = query + 1 + n - queries;
  return visible > 0 ? visible : 0;
}

// The scores of x: for 16 bits times log2(e), so that their powers are of 2 and take no further multiplication.
template <class T>
struct Scores {
  static constexpr bool kBase2 = sizeof(T) < sizeof(float);
  static constexpr float kUnit = kBase2 ? kLog2E : 1.0f;
  using Total = MaxSum<T, kBase2>;
};

// A row of a mask: M is the type of an additive one, or bool, and then `row` null where there is none.
template <class T, class M>
class MaskReader {
 public:
  __device__ MaskReader(const M* row, const RowCut& cut) : reader_(row, cut) {}

  template <int kColumns>
  __device__ void apply(const Place<kColumns>& place, float scale, Floats<kColumns>& x) const {
    for_each_part<M>(place, [&](auto part, int first) {
      const auto mask = reader_.load(part, part.column);
#pragma unroll
      for (int i = 0; i < part.kCount; ++i) {
        const float score = x[first + i] * (scale * Scores<T>::kUnit) + mask[i] * Scores<T>::kUnit;
        x[first + i] = mask[i] == -INFINITY ? -INFINITY : score;
      }
    });
  }

 private:
  RowReader<M> reader_;
};

template <class T>
class MaskReader<T, bool> {
 public:
  __device__ MaskReader(const bool* row, const RowCut& cut)
      : row_(row), is_aligned_(address_of(row + cut.head) % kVectorWidth<T> == 0) {}

  template <int kColumns>
  __device__ void apply(const Place<kColumns>& place, float scale, Floats<kColumns>& x) const {
    const auto seen = row_ == nullptr ? ~Bytes<kColumns>{0} : load(place);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      x[i] = (seen >> 8 * i & 0xff) != 0 ? x[i] * (scale * Scores<T>::kUnit) : -INFINITY;
    }
  }

 private:
  template <int kColumns>
  using Bytes = std::conditional_t<kColumns == 8, std::uint64_t, unsigned>;

  // Byte i is that of column i.
  template <int kColumns>
  __device__ Bytes<kColumns> load(const Place<kColumns>& place) const {
    static_assert(kColumns == 1 || kColumns == sizeof(Bytes<kColumns>));
    if (kColumns > 1 && is_aligned_) return *reinterpret_cast<const Bytes<kColumns>*>(row_ + place.column);
    Bytes<kColumns> bytes = 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) bytes |= Bytes<kColumns>{row_[place.column + i]} << 8 * i;
    return bytes;
  }

  const bool* row_;
  bool is_aligned_;
};

// Zeros in the columns from `visible` on.
template <class T, class Shape>
__device__ void hide_rest(const typename Shape::Team& team, T* row, std::int64_t visible, std::int64_t n) {
  const RowWriter<T> rest(row + visible);
  Columns<T, Shape>(team, row + visible, n - visible).for_each([&](auto place) {
    rest.store(place.column, Floats<place.kCount>{});
  });
}

}  // namespace

template <class T, class M, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    masked_softmax_fwd_kernel(const T* __restrict__ x,     // rows of n
                              const M* __restrict__ mask,  // rows of n, or null
                              T* __restrict__ y,           // (rows, n)
                              std::int64_t rows, std::int64_t n, std::int64_t queries, const RowStrides x_strides,
                              const RowStrides mask_strides, float scale) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const std::int64_t visible = visible_columns(row, n, queries);
    const Columns<T, Shape> columns(team, y + row * n, visible);
    const Row<T, Shape> x_row(x + row_offset(x_strides, row), columns);
    const M* const mask_begin = mask == nullptr ? nullptr : mask + row_offset(mask_strides, row);
    const MaskReader<T, M> mask_row(mask_begin, columns.cut());
    const RowWriter<T> y_row(y + row * n);
    const auto scores = [&](auto place) {
      auto values = x_row.load(place);
      mask_row.apply(place, scale, values);
      return values;
    };

    typename Scores<T>::Total total;
    columns.for_each([&](auto place) { total.add(scores(place)); });
    total = team.reduce(total);

    const float shift = total.shift();
    const float inverse = total.sum == 0.0f ? 0.0f : 1.0f / total.sum;  // 0 only if nothing is seen
    columns.for_each([&](auto place) {
      auto values = scores(place);
#pragma unroll
      for (float& value : values.values) value = total.power(value - shift) * inverse;
      y_row.store(place.column, values);
    });
    hide_rest<T, Shape>(team, y + row * n, visible, n);
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    masked_softmax_bwd_kernel(const T* __restrict__ dy,  // (rows, n)
                              const T* __restrict__ y,   // (rows, n)
                              T* __restrict__ dx,        // (rows, n)
                              std::int64_t rows, std::int64_t n, std::int64_t queries, float scale) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const std::int64_t visible = visible_columns(row, n, queries);
    const Columns<T, Shape> columns(team, dx + row * n, visible);
    const Row<T, Shape> dy_row(dy + row * n, columns), y_row(y + row * n, columns);
    const RowWriter<T> dx_row(dx + row * n);

    Sums<1> dot;
    columns.for_each([&](auto place) {
      const auto dy_values = dy_row.load(place), y_values = y_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) {
        dot.values[0] += y_values[i] == 0.0f ? 0.0f : dy_values[i] * y_values[i];
      }
    });
    dot = team.reduce(dot);

    columns.for_each([&](auto place) {
      auto values = dy_row.load(place);
      const auto y_values = y_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) {
        const float gradient = scale * y_values[i] * (values[i] - dot.values[0]);
        values[i] = y_values[i] == 0.0f ? 0.0f : gradient;
      }
      dx_row.store(place.column, values);
    });
    hide_rest<T, Shape>(team, dx + row * n, visible, n);
  }
}

namespace {

// Calls launch(Type<M>): bool where there is no mask or a boolean one, else the type of the numbers, T or fp32.
template <class T, class Launch>
cudaError_t dispatch_mask(const std::optional<DType>& additive, DType dtype, Launch launch) {
  if (!additive) return launch(Type<bool>{});
  if (*additive == dtype) return launch(Type<T>{});
  return *additive == DType::kFloat32 ? launch(Type<float>{}) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t masked_softmax_fwd(DType dtype, std::optional<DType> additive, const void* x, const void* mask, void* y,
                               std::int64_t rows, std::int64_t n, std::int64_t queries, const RowStrides& x_strides,
                               const RowStrides& mask_strides, float scale, cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_mask<T>(additive, dtype, [&](auto mask_element) {
      using M = typename decltype(mask_element)::type;
      return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
        return launch(masked_softmax_fwd_kernel<T, M, typename decltype(row_shape)::type>, shape, stream,
                      static_cast<const T*>(x), static_cast<const M*>(mask), static_cast<T*>(y), rows, n, queries,
                      x_strides, mask_strides, scale);
      });
    });
  });
}

cudaError_t masked_softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                               std::int64_t queries, float scale, cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      return launch(masked_softmax_bwd_kernel<T, typename decltype(row_shape)::type>, shape, stream,
                    static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<T*>(dx), rows, n, queries, scale);
    });
  });
}

}  // namespace fusedformer
