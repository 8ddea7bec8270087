// GELU, x Phi(x), with Phi by erf or by its tanh approximation, and its gradient, element by element.
//
//     erf    Phi(x) = erfc(-x / sqrt 2) / 2
//            gelu'  = Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
//     tanh   Phi(x) = (1 + tanh u) / 2 = sigmoid(2 u),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//            gelu'  = Phi(x) + x Phi(x) (1 - Phi(x)) 2 du/dx
//
// Both forms of Phi keep their digits in the lower tail, where 1 + erf and 1 + tanh cancel. Ideal traffic: 2 elements
// read and written each forward, 3 backward. Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
#include "launch.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace fusedformer {

// Phi is flat in fp32 long before |x| = 100; what multiplies 0 stops there, for 0 times an overflow is NaN.
inline __device__ float not_far_below_zero(float x) { return fmaxf(x, -100.0f); }
inline __device__ float near_zero(float x) { return fminf(fmaxf(x, -100.0f), 100.0f); }

struct Erf {
  static __device__ float phi(float x) { return 0.5f * erfcf(-0.70710678f * x); }

  static __device__ float gelu(float x) { return not_far_below_zero(x) * phi(x); }

  static __device__ float gelu_gradient(float x) {
    constexpr float kInverseSqrtTwoPi = 0.39894228f;
    const float near = near_zero(x);
    return phi(x) + near * (kInverseSqrtTwoPi * expf(-0.5f * near * near));
  }
};

struct Tanh {
  static constexpr float kSqrtTwoOverPi = 0.79788456f, kCubic = 0.044715f;

  struct Sigmoid {
    float value, complement;  // complement = 1 - value, without the cancellation
  };

  // By the exponential that cannot overflow.
  static __device__ Sigmoid sigmoid_2u(float x) {
    const float u = kSqrtTwoOverPi * (x + kCubic * x * x * x);
    const float decay = expf(-2.0f * fabsf(u));
    const float large = reciprocal(1.0f + decay), small = decay * large;
    return u < 0.0f ? Sigmoid{small, large} : Sigmoid{large, small};
  }

  static __device__ float gelu(float x) { return not_far_below_zero(x) * sigmoid_2u(x).value; }

  static __device__ float gelu_gradient(float x) {
    const float near = near_zero(x);
    const float slope = 2.0f * kSqrtTwoOverPi * (1.0f + 3.0f * kCubic * near * near);
    const Sigmoid phi = sigmoid_2u(x);
    return phi.value + near * (phi.value * phi.complement * slope);
  }
};

constexpr unsigned kThreads = 256;
constexpr unsigned kBlocksPerProcessor = 3;  // allows 80 registers; by itself ptxas aims lower, and spills

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
    for (float& value : values.values) value = Form::gelu(value);
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
    for (int i = 0; i < width.kCount; ++i) values[i] = dy_values[i] * Form::gelu_gradient(values[i]);
    dx_row.store(column, values);
  });
}

// Calls launch(Type<T>, Type<Erf or Tanh>, shape).
template <class Launch>
cudaError_t dispatch_gelu(DType dtype, Gelu form, std::int64_t n, Launch launch) {
  if (n == 0) return cudaSuccess;
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const LaunchShape shape = {dim3(grid_for(n, kThreads * kVectorWidth<T>)), kThreads};
    return form == Gelu::kErf ? launch(element, Type<Erf>{}, shape) : launch(element, Type<Tanh>{}, shape);
  });
}

cudaError_t gelu_fwd(DType dtype, Gelu form, const void* x, void* y, std::int64_t n, cudaStream_t stream) {
  return dispatch_gelu(dtype, form, n, [&](auto element, auto form_type, const LaunchShape& shape) {
    using T = typename decltype(element)::type;
    return launch(gelu_fwd_kernel<T, typename decltype(form_type)::type>, shape, stream, static_cast<const T*>(x),
                  static_cast<T*>(y), n);
  });
}

cudaError_t gelu_bwd(DType dtype, Gelu form, const void* dy, const void* x, void* dx, std::int64_t n,
                     cudaStream_t stream) {
  return dispatch_gelu(dtype, form, n, [&](auto element, auto form_type, const LaunchShape& shape) {
    using T = typename decltype(element)::type;
    return launch(gelu_bwd_kernel<T, typename decltype(form_type)::type>, shape, stream, static_cast<const T*>(dy),
                  static_cast<const T*>(x), static_cast<T*>(dx), n);
  });
}

}  // namespace fusedformer
