// Rows in global memory: read and written 16 bytes at a time wherever alignment allows, computed on in fp32.
//
// A row of n elements is cut where the output's addresses are multiples of 16 bytes:
//
//     0        head                          tail        n
//     | scalar | vector | vector | ... | vector | scalar |
//
// so a row of odd length, whose start is aligned differently in every row, is still stored in 128-bit accesses.
// An input that is aligned as the output is loaded so too; another one is loaded element by element.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.h"

namespace fusedformer {

inline __device__ float to_float(float value) { return value; }
inline __device__ float to_float(__half value) { return __half2float(value); }
inline __device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T from_float(float value);
template <>
inline __device__ float from_float<float>(float value) { return value; }
template <>
inline __device__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
inline __device__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// Elements of type T in one vector access.
template <class T>
inline constexpr int kVectorWidth = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct alignas(kVectorBytes) Vector {
  T elements[kVectorWidth<T>];
};

// A compile-time number of columns, passed as a value so that lambdas can take it.
template <int kColumns>
struct Width {
  static constexpr int kCount = kColumns;
};

// kColumns neighbouring elements of a row, in registers.
template <int kColumns>
struct Floats {
  float values[kColumns];

  __device__ float& operator[](int i) { return values[i]; }
  __device__ float operator[](int i) const { return values[i]; }
};

// Neighbouring elements at an address that is aligned for vectors of them, or just one element.
template <int kColumns, class T>
__device__ Floats<kColumns> load_floats(const T* address) {
  Floats<kColumns> out;
  if constexpr (kColumns == 1) {
    out[0] = to_float(*address);
  } else {
    static_assert(kColumns % kVectorWidth<T> == 0);
#pragma unroll
    for (int i = 0; i < kColumns; i += kVectorWidth<T>) {
      const auto vector = load_vector<Vector<T>>(address + i);
#pragma unroll
      for (int j = 0; j < kVectorWidth<T>; ++j) out[i + j] = to_float(vector.elements[j]);
    }
  }
  return out;
}

// Rounds to T, to nearest even.
template <int kColumns, class T>
__device__ void store_floats(T* address, const Floats<kColumns>& values) {
  if constexpr (kColumns == 1) {
    *address = from_float<T>(values[0]);
  } else {
    static_assert(kColumns == kVectorWidth<T>);
    Vector<T> vector;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) vector.elements[i] = from_float<T>(values[i]);
    store_vector(address, vector);
  }
}

struct RowCut {
  std::int64_t n, head, tail;
};

template <class T>
__device__ RowCut cut_row(const T* output, std::int64_t n) {
  const auto past_boundary = static_cast<int>(reinterpret_cast<std::uintptr_t>(output) % kVectorBytes / sizeof(T));
  std::int64_t head = (kVectorWidth<T> - past_boundary) % kVectorWidth<T>;
  if (head > n) head = n;
  return {n, head, head + (n - head) / kVectorWidth<T> * kVectorWidth<T>};
}

// Deals the row's columns out to the threads of a team (reduce.cuh): visit(Width, column) for each vector and each
// single element. The same columns come to the same thread every time.
template <class T, class Team, class Visit>
__device__ void for_each_column(const Team& team, const RowCut& cut, Visit visit) {
  static_assert(2 * (kVectorWidth<T> - 1) < 32, "the smallest team, a warp, takes both ends in one step");
  const std::int64_t thread = team.thread(), stride = team.threads() * kVectorWidth<T>;
  for (std::int64_t column = cut.head + thread * kVectorWidth<T>; column < cut.tail; column += stride) {
    visit(Width<kVectorWidth<T>>{}, column);
  }
  if (thread < cut.head) {
    visit(Width<1>{}, thread);
  } else if (thread - cut.head < cut.n - cut.tail) {
    visit(Width<1>{}, cut.tail + thread - cut.head);
  }
}

// One row of an input, element type T: loads convert to fp32.
template <class T>
class RowReader {
 public:
  __device__ RowReader(const T* row, const RowCut& cut) : row_(row), aligned_(is_vector_aligned(row + cut.head)) {}

  template <int kColumns>
  __device__ Floats<kColumns> load(Width<kColumns>, std::int64_t column) const {
    if (kColumns == 1 || aligned_) return load_floats<kColumns>(row_ + column);
    Floats<kColumns> out;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) out[i] = to_float(row_[column + i]);
    return out;
  }

 private:
  const T* row_;
  bool aligned_;
};

// One row of the output that the row was cut for.
template <class T>
class RowWriter {
 public:
  explicit __device__ RowWriter(T* row) : row_(row) {}

  template <int kColumns>
  __device__ void store(std::int64_t column, const Floats<kColumns>& values) const {
    store_floats(row_ + column, values);
  }

 private:
  T* row_;
};

}  // namespace fusedformer
