// GELU, x Phi(x), with Phi by erf or by its tanh approximation, and its gradient, element by element.
//
// The functions are in activations.cuh. Ideal traffic: 2 elements read and written each forward, 3 backward.
#include "activations.cuh"
#include "launch.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {

constexpr unsigned kThreads = 256;
constexpr unsigned kBlocksPerProcessor = 3;  // allows 80 registers; by itself ptxas aims lower, and spills
constexpr std::int64_t kVectorsOfThread = 4;  // what a thread does once is then small beside what it does for each

template <class T, class Form>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    gelu_fwd_kernel(const T* __restrict__ x,  // (n,)
                    T* __restrict__ y,        // (n,)
                    std::int64_t n) {
  const RowCut cut = cut_row(y, n);
  const RowReader<T> x_row(x, cut);
  const RowWriter<T> y_row(y);
  for_each_column<T>(WholeGrid{}, cut, [&](auto width, std::int64_t column) {
    auto values = x_row.load(width, column);
#pragma unroll
    for (float& value : values.values) value = Form::template at<T>(value).value;
    y_row.store(column, values);
  });
}

template <class T, class Form>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    gelu_bwd_kernel(const T* __restrict__ dy,  // (n,)
                    const T* __restrict__ x,   // (n,)
                    T* __restrict__ dx,        // (n,)
                    std::int64_t n) {
  const RowCut cut = cut_row(dx, n);
  const RowReader<T> dy_row(dy, cut), x_row(x, cut);
  const RowWriter<T> dx_row(dx);
  for_each_column<T>(WholeGrid{}, cut, [&](auto width, std::int64_t column) {
    const auto dy_values = dy_row.load(width, column);
    auto values = x_row.load(width, column);
#pragma unroll
    for (int i = 0; i < width.kCount; ++i) values[i] = dy_values[i] * Form::template at<T>(values[i]).slope;
    dx_row.store(column, values);
  });
}

// Calls launch(Type<T>, Type<Form>, shape).
template <class Launch>
cudaError_t dispatch_gelu(DType dtype, Activation activation, std::int64_t n, Launch launch) {
  if (n == 0) return cudaSuccess;
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const LaunchShape shape = {dim3(grid_for(n, kThreads * kVectorWidth<T> * kVectorsOfThread)), kThreads};
    return dispatch_form<GeluErf, GeluTanh>(activation, [&](auto form) { return launch(element, form, shape); });
  });
}

cudaError_t gelu_fwd(DType dtype, Activation activation, const void* x, void* y, std::int64_t n, cudaStream_t stream) {
  return dispatch_gelu(dtype, activation, n, [&](auto element, auto form, const LaunchShape& shape) {
    using T = typename decltype(element)::type;
    return launch(gelu_fwd_kernel<T, typename decltype(form)::type>, shape, stream, static_cast<const T*>(x),
                  static_cast<T*>(y), n);
  });
}

cudaError_t gelu_bwd(DType dtype, Activation activation, const void* dy, const void* x, void* dx, std::int64_t n,
                     cudaStream_t stream) {
  return dispatch_gelu(dtype, activation, n, [&](auto element, auto form, const LaunchShape& shape) {
    using T = typename decltype(element)::type;
    return launch(gelu_bwd_kernel<T, typename decltype(form)::type>, shape, stream, static_cast<const T*>(dy),
                  static_cast<const T*>(x), static_cast<T*>(dx), n);
  });
}

}  // namespace fusedformer
