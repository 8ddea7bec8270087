// Stands in for CUDA's header of the same name when g++ compiles the kernels: IEEE half precision and its conversions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half value) {
  const unsigned exponent = value.bits >> 10 & 0x1f, mantissa = value.bits & 0x3ff;
  float magnitude;
  if (exponent == 0x1f) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::bit_cast<float>((exponent + 127 - 15) << 23 | mantissa << 13);
  }
  return value.bits & 0x8000 ? -magnitude : magnitude;
}

// To nearest, ties to even.
inline __half __float2half_rn(float value) {
  const auto sign = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  if (magnitude != magnitude) return {0x7fff};
  std::uint32_t half;
  if (magnitude < 0x1p-14f) {
    // Subnormal: in this sum the last bit of the mantissa is worth 2^-24, so the sum rounds as a half does.
    half = std::bit_cast<std::uint32_t>(magnitude + 0.5f) - std::bit_cast<std::uint32_t>(0.5f);
  } else if (magnitude < 65520.0f) {  // rounds to at most the largest half, 65504
    const std::uint32_t last_kept_bit = bits >> 13 & 1;
    half = ((bits + 0xfff + last_kept_bit) >> 13) - ((127 - 15) << 10);
  } else {
    half = 0x7c00;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

struct __half2 {
  __half x, y;
};

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
