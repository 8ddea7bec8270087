// GELU or ReLU of x + bias, and the gradients of both, in one pass over memory each.
//
//     y = f(x + bias),  dx = dy f'(x + bias),  dbias = sum_rows dx
//
// The sum x + bias is fp32, and dbias is the sum of what dx was before it was rounded. Threads stay in their columns
// (columns.cuh), so that the bias and its gradient are in registers. Ideal traffic: 2 elements read and written each
// forward, 3 backward. The partial sums of dbias are at most 1 element in 16 of x, and less as there are more columns.
#include "activations.cuh"
#include "columns.cuh"
#include "launch.h"
#include "vector.cuh"

namespace fusedformer {

// Not a product for Relu, whose slope of 0 hides an infinite dy.
template <class T, class Form>
__device__ float input_gradient(float dy, float x) {
  if constexpr (std::is_same_v<Form, Relu>) return x <= 0.0f ? 0.0f : dy;
  return dy * Form::template at<T>(x).slope;
}

template <class T, class B, class Form, int kColumns>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    bias_activation_fwd_kernel(const T* __restrict__ x,     // (rows, n)
                               const B* __restrict__ bias,  // (n,)
                               T* __restrict__ y,           // (rows, n)
                               std::int64_t rows, std::int64_t n, std::int64_t rows_of_group) {
  const std::int64_t column = first_column<kColumns>();
  if (column >= n) return;
  const auto biases = load_floats<kColumns>(bias + column);
  for_each_row(rows, rows_of_group, [&](std::int64_t row) {
    auto values = load_floats<kColumns>(x + row * n + column);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = Form::template at<T>(values[i] + biases[i]).value;
    store_floats(y + row * n + column, values);
  });
}

template <class T, class B, class Form, int kColumns>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    bias_activation_bwd_kernel(const T* __restrict__ dy,             // (rows, n)
                               const T* __restrict__ x,              // (rows, n)
                               const B* __restrict__ bias,           // (n,)
                               T* __restrict__ dx,                   // (rows, n)
                               float* __restrict__ dbias_partials,   // (gridDim.y, n) or null
                               std::int64_t rows, std::int64_t n, std::int64_t rows_of_group) {
  const std::int64_t column = first_column<kColumns>();
  Floats<kColumns> dbias = {};
  if (column < n) {
    const auto biases = load_floats<kColumns>(bias + column);
    for_each_row(rows, rows_of_group, [&](std::int64_t row) {
      auto values = load_floats<kColumns>(dy + row * n + column);
      const auto xs = load_floats<kColumns>(x + row * n + column);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        values[i] = input_gradient<T, Form>(values[i], xs[i] + biases[i]);
        dbias[i] += values[i];
      }
      store_floats(dx + row * n + column, values);
    });
  }
  store_partials(dbias_partials, n, dbias);
}

// Calls launch(Type<T>, Type<B>, Type<Form>, Width<columns of a thread>).
template <class Launch>
cudaError_t dispatch_bias(DType dtype, DType bias_dtype, Activation activation, std::int64_t n,
                          std::initializer_list<const void*> addresses, Launch launch) {
  return dispatch_weight(dtype, bias_dtype, [&](auto element, auto bias_element) {
    using T = typename decltype(element)::type;
    return dispatch_form<GeluErf, GeluTanh, Relu>(activation, [&](auto form) {
      return dispatch_width<T>(allows_vectors<T>(n, addresses),
                               [&](auto width) { return launch(element, bias_element, form, width); });
    });
  });
}

cudaError_t bias_activation_fwd(DType dtype, DType bias_dtype, Activation activation, const void* x, const void* bias,
                                void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  if (rows == 0 || n == 0) return cudaSuccess;
  const RowGroups groups = row_groups(rows, kMaxGroups);
  const auto launch_forward = [&](auto element, auto bias_element, auto form, auto width) {
    using T = typename decltype(element)::type;
    using B = typename decltype(bias_element)::type;
    constexpr int kColumns = width.kCount;
    return launch(bias_activation_fwd_kernel<T, B, typename decltype(form)::type, kColumns>,
                  column_shape<kColumns>(n, groups.count), stream, static_cast<const T*>(x),
                  static_cast<const B*>(bias), static_cast<T*>(y), rows, n, groups.rows);
  };
  return dispatch_bias(dtype, bias_dtype, activation, n, {x, bias, y}, launch_forward);
}

namespace {

// Blocks enough to fill a GPU, in few groups where there are many columns: their sums are written, and read again.
RowGroups bwd_groups(std::int64_t rows, std::int64_t n) {
  constexpr std::int64_t kBlocks = 1024, kMaxPartials = 512, kColumnsOfBlock = kWarpSize * kVectorWidth<__half>;
  return row_groups(rows, std::clamp(kBlocks * kColumnsOfBlock / std::max(n, std::int64_t{1}), std::int64_t{1},
                                     kMaxPartials));
}

}  // namespace

std::int64_t bias_activation_bwd_partials(std::int64_t rows, std::int64_t n) { return bwd_groups(rows, n).count; }

cudaError_t bias_activation_bwd(DType dtype, DType bias_dtype, Activation activation, const void* dy, const void* x,
                                const void* bias, void* dx, float* dbias_partials, void* dbias, std::int64_t rows,
                                std::int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const RowGroups groups = bwd_groups(rows, n);
  const auto launch_backward = [&](auto element, auto bias_element, auto form, auto width) {
    using T = typename decltype(element)::type;
    using B = typename decltype(bias_element)::type;
    constexpr int kColumns = width.kCount;
    if (rows > 0) {
      const cudaError_t error = launch(bias_activation_bwd_kernel<T, B, typename decltype(form)::type, kColumns>,
                                       column_shape<kColumns>(n, groups.count), stream, static_cast<const T*>(dy),
                                       static_cast<const T*>(x), static_cast<const B*>(bias), static_cast<T*>(dx),
                                       dbias_partials, rows, n, groups.rows);
      if (error != cudaSuccess) return error;
    }
    return sum_partials(dbias_partials, static_cast<B*>(dbias), groups.count, n, stream);
  };
  return dispatch_bias(dtype, bias_dtype, activation, n, {dy, x, bias, dx}, launch_backward);
}

}  // namespace fusedformer
