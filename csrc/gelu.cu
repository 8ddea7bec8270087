// GELU, x Phi(x), with Phi by erf or by its tanh approximation, and its gradient, element by element.
//
// The functions are in activations.cuh. Ideal traffic: 2 elements read and written each forward, 3 backward.
#include "activations.cuh"
#include "launch.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {

constexpr unsigned kThreads = 256;
constexpr std::int64_t kVisitsOfThread = 4;  // what a thread does once is then small beside what it does for each

// Deals n elements out to all threads of the grid: visit(Width<kColumns>, i), and visit(Width<1>, i) for the remainder.
template <int kColumns, class Visit>
__device__ void for_each_element(std::int64_t n, Visit visit) {
  const WholeGrid grid;
  const std::int64_t whole = n - n % kColumns;
  for (std::int64_t i = grid.thread() * kColumns; i < whole; i += grid.threads() * kColumns) {
    visit(Width<kColumns>{}, i);
  }
  if (grid.thread() < n - whole) visit(Width<1>{}, whole + grid.thread());
}

template <class T, class Form, int kColumns>
__global__ void __launch_bounds__(kThreads)
    gelu_fwd_kernel(const T* __restrict__ x,  // (n,)
                    T* __restrict__ y,        // (n,)
                    std::int64_t n) {
  for_each_element<kColumns>(n, [&](auto width, std::int64_t i) {
    auto values = load_floats<width.kCount>(x + i);
#pragma unroll
    for (float& value : values.values) value = Form::template at<T>(value).value;
    store_floats(y + i, values);
  });
}

template <class T, class Form, int kColumns>
__global__ void __launch_bounds__(kThreads)
    gelu_bwd_kernel(const T* __restrict__ dy,  // (n,)
                    const T* __restrict__ x,   // (n,)
                    T* __restrict__ dx,        // (n,)
                    std::int64_t n) {
  for_each_element<kColumns>(n, [&](auto width, std::int64_t i) {
    auto values = load_floats<width.kCount>(dy + i);
    const auto xs = load_floats<width.kCount>(x + i);
#pragma unroll
    for (int j = 0; j < width.kCount; ++j) values[j] *= Form::template at<T>(xs[j]).slope;
    store_floats(dx + i, values);
  });
}

// Calls launch(Type<T>, Type<Form>, Width<elements at once>, shape).
template <class Launch>
cudaError_t dispatch_gelu(DType dtype, Activation activation, std::int64_t n,
                          std::initializer_list<const void*> addresses, Launch launch) {
  if (n == 0) return cudaSuccess;
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_form<GeluErf, GeluTanh>(activation, [&](auto form) {
      return dispatch_width<T>(allows_vectors<T>(0, addresses), [&](auto width) {
        const unsigned blocks = grid_for(n, kThreads * width.kCount * kVisitsOfThread);
        return launch(element, form, width, LaunchShape{dim3(blocks), kThreads});
      });
    });
  });
}

cudaError_t gelu_fwd(DType dtype, Activation activation, const void* x, void* y, std::int64_t n, cudaStream_t stream) {
  return dispatch_gelu(dtype, activation, n, {x, y}, [&](auto element, auto form, auto width, LaunchShape shape) {
    using T = typename decltype(element)::type;
    return launch(gelu_fwd_kernel<T, typename decltype(form)::type, width.kCount>, shape, stream,
                  static_cast<const T*>(x), static_cast<T*>(y), n);
  });
}

cudaError_t gelu_bwd(DType dtype, Activation activation, const void* dy, const void* x, void* dx, std::int64_t n,
                     cudaStream_t stream) {
  return dispatch_gelu(dtype, activation, n, {dy, x, dx}, [&](auto element, auto form, auto width, LaunchShape shape) {
    using T = typename decltype(element)::type;
    return launch(gelu_bwd_kernel<T, typename decltype(form)::type, width.kCount>, shape, stream,
                  static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dx), n);
  });
}

}  // namespace fusedformer
