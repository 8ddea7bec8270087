// Activations and their slopes, of one element in registers. A form is a struct with
//
//     at<T>(x).value   f(x)        T is the type that the result is rounded to: the precision needed
//     at<T>(x).slope   f'(x)       costs nothing where it is not used
//
//     GeluErf    x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2        slope  Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
//     GeluTanh   x sigmoid(2 u),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//     Silu       x sigmoid(x)
//     Relu       max(x, 0)
//
// where x sigmoid(v) has the slope s (1 + (1 - s) x v'), s = sigmoid(v). A GPU can issue about 30 instructions for each
// bf16 element in the time that reading and writing one takes, of which erff or tanhf would take all. So for 16-bit
// types every form is made of exp2 and reciprocal, one instruction each.
//
// Lower tails keep their digits until the result underflows: nothing is the difference of two numbers near 1, and what
// is small on the way is kept times a power of two, for exp2 and reciprocal flush subnormal numbers to 0. Far out the
// values are the limits, 0 or x, with slopes 0 or 1, infinities included. NaN gives NaN.
//
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; Elfwing et al., "Sigmoid-weighted linear units for
// neural network function approximation", 2017.
#pragma once

#include <type_traits>

#include "launch.h"

namespace fusedformer {

inline constexpr float kLog2E = 1.44269504f;

// The power of two. It is added to an exponent, which costs digits that only fp32 has: there results below 2^-118 are
// 0.
template <class T>
inline constexpr float kScaleLog2 = std::is_same_v<T, float> ? 0.0f : 24.0f;
template <class T>
inline constexpr float kScale = std::is_same_v<T, float> ? 1.0f : 0x1p24f;

// exp(v) / kScale, where v is given times this. fp32 moves twice the bytes of an element, and has the time for expf.
template <class T>
inline constexpr float kExponent = std::is_same_v<T, float> ? 1.0f : kLog2E;

template <class T>
__device__ float scaled_down_exp(float v) {
  if constexpr (std::is_same_v<T, float>) return expf(v);
  else return exp2_flushed(v - kScaleLog2<T>);
}

struct ValueAndSlope {
  float value, slope;
};

// Every function here is flat in fp32 long before; what multiplies 0 stops there, for 0 times infinity is NaN.
inline constexpr float kFar = 200.0f;
inline __device__ float not_far_below_zero(float x) { return fmaxf(x, -kFar); }
inline __device__ float near_zero(float x) { return fminf(fmaxf(x, -kFar), kFar); }

// x sigmoid(v), where v is given times -kExponent, and its derivative by x, where v' is given at near_zero(x).
template <class T>
__device__ ValueAndSlope times_sigmoid(float x, float minus_v, float v_slope) {
  const float decay = scaled_down_exp<T>(minus_v);
  const float scaled = reciprocal(1.0f / kScale<T> + decay);
  const float sigmoid = scaled * (1.0f / kScale<T>);
  const float complement = scaled * fminf(decay, 0x1p126f);  // 1 - sigmoid; where decay overflows sigmoid is 0
  return {not_far_below_zero(x) * sigmoid, sigmoid * (complement * (near_zero(x) * v_slope) + 1.0f)};
}

// kScale (c0 + c1 x + c2 x^2 + ...), by Horner's rule.
template <class T, class... Higher>
__device__ float scaled_polynomial(float x, float c, Higher... higher) {
  if constexpr (sizeof...(higher) == 0) return kScale<T> * c;
  else return scaled_polynomial<T>(x, higher...) * x + kScale<T> * c;
}

// kScale exp(-a^2 / 2) / Phi(-a) for 0 <= a <= kFarthest: smooth, and soon almost a straight line, which is why a
// polynomial of low degree fits it. Past kFarthest the result is 0 in type T, even times the largest number of type T.
// The relative error of the fit is at most 5.2e-4 for bf16, whose numbers are 3.9e-3 to 7.8e-3 of themselves apart, and
// 2.6e-5 for fp16, 4.9e-4 to 9.8e-4 apart. The coefficients come from tests/gelu_fit.py.
template <class T>
struct InverseTail;

template <>
struct InverseTail<__nv_bfloat16> {
  static constexpr float kFarthest = 14.6f;
  static __device__ float at(float a) {
    return scaled_polynomial<__nv_bfloat16>(a, 1.9989808f, 1.6079136f, 0.25577837f, -0.044413738f, 0.0044180746f,
                                            -0.00022801454f, 4.7005906e-6f);
  }
};

template <>
struct InverseTail<__half> {
  static constexpr float kFarthest = 8.0f;
  static __device__ float at(float a) {
    return scaled_polynomial<__half>(a, 1.9999732f, 1.595112f, 0.27778265f, -0.05674078f, 0.007335854f,
                                     -0.0005346575f, 1.6563763e-5f);
  }
};

struct GeluErf {
  static constexpr Activation kActivation = Activation::kGeluErf;
  static constexpr float kInverseSqrtTwoPi = 0.39894228f;

  // With a = |x|: value = max(x, 0) - a Phi(-a), and the slope is that of -a below 0, where it is Phi(-a) - a phi(a),
  // and 1 minus it above. Both terms have the factor exp(-a^2 / 2).
  template <class T>
  static __device__ ValueAndSlope at(float x) {
    const float a = min_or_nan(fabsf(x), InverseTail<T>::kFarthest);
    const float bell = exp2_flushed(a * a * (-0.5f * kLog2E) + kScaleLog2<T>);  // kScale exp(-a^2 / 2)
    const float tail_of_bell = reciprocal(InverseTail<T>::at(a));               // Phi(-a) / bell
    const float slope_below = bell * (tail_of_bell - a * (kInverseSqrtTwoPi / kScale<T>));
    return {fmaxf(x, 0.0f) - a * (bell * tail_of_bell), x < 0.0f ? slope_below : 1.0f - slope_below};
  }
};

// fp32 has the time for erfcf.
template <>
inline __device__ ValueAndSlope GeluErf::at<float>(float x) {
  const float phi = 0.5f * erfcf(-0.70710678f * x), near = near_zero(x);
  return {not_far_below_zero(x) * phi, phi + near * (kInverseSqrtTwoPi * expf(-0.5f * near * near))};
}

struct GeluTanh {
  static constexpr Activation kActivation = Activation::kGeluTanh;

  template <class T>
  static __device__ ValueAndSlope at(float x) {
    constexpr float kLinear = 2.0f * 0.79788456f, kCubic = kLinear * 0.044715f;  // 2 u = kLinear x + kCubic x^3
    const float minus_v = x * (x * x * (-kExponent<T> * kCubic) - kExponent<T> * kLinear), near = near_zero(x);
    return times_sigmoid<T>(x, minus_v, near * near * (3.0f * kCubic) + kLinear);
  }
};

struct Silu {
  static constexpr Activation kActivation = Activation::kSilu;

  template <class T>
  static __device__ ValueAndSlope at(float x) {
    return times_sigmoid<T>(x, x * -kExponent<T>, 1.0f);
  }
};

struct Relu {
  static constexpr Activation kActivation = Activation::kRelu;

  template <class T>
  static __device__ ValueAndSlope at(float x) {
    return {x <= 0.0f ? 0.0f : x, x <= 0.0f ? 0.0f : 1.0f};
  }
};

// Calls launch(Type<Form>) with the one of Forms that `activation` names.
template <class... Forms, class Launch>
cudaError_t dispatch_form(Activation activation, Launch launch) {
  cudaError_t error = cudaErrorInvalidValue;
  ((activation == Forms::kActivation ? void(error = launch(Type<Forms>{})) : void()), ...);
  return error;
}

}  // namespace fusedformer
