// The sum of a row's exponentials, of which neither over- nor underflows: kept relative to the largest, in one pass.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
#pragma once

#include "vector.cuh"

namespace fusedformer {

inline constexpr float kLog2E = 1.44269504f;

// exp(x) for results of type T. The rounding of log2(e) x is far below what 16 bits show, and costs fp32 3 ulp at
// x = -10: there expf has the instructions to spare, for its elements take twice the time to come.
template <class T>
__device__ float exp_for(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return expf(x);
  } else {
    return exp2_flushed(kLog2E * x);
  }
}

// The largest of some numbers and the sum of their exponentials relative to it: powers of e for results of type T, or
// of 2, where the numbers have been multiplied by log2(e) already.
template <class T, bool kBase2 = false>
struct MaxSum {
  float max = -INFINITY;
  float sum = 0.0f;

  static __device__ float power(float x) {
    if constexpr (kBase2) {
      return exp2_flushed(x);
    } else {
      return exp_for<T>(x);
    }
  }

  // What is subtracted in exponents: while only -inf was seen, not max, for -inf - -inf is NaN.
  __device__ float shift() const { return max == -INFINITY ? 0.0f : max; }

  // The larger side keeps its sum as it is, so merge(a, b) and merge(b, a) give the same bits.
  __device__ void merge(const MaxSum& other) {
    const bool keep = max >= other.max;
    const MaxSum larger = keep ? *this : other;
    const MaxSum smaller = keep ? other : *this;
    max = larger.max;
    sum = larger.sum + smaller.sum * power(smaller.max - larger.shift());
  }

  template <int kColumns>
  __device__ void add(const Floats<kColumns>& x) {
    MaxSum chunk;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) chunk.max = fmaxf(chunk.max, x[i]);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) chunk.sum += power(x[i] - chunk.shift());
    merge(chunk);
  }
};

}  // namespace fusedformer
