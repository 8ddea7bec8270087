// Rows in global memory: read and written 16 bytes at a time wherever alignment allows, computed on in fp32.
//
// A row of n elements is cut where the output's addresses are multiples of 16 bytes:
//
//     0        head                          tail        n
//     | scalar | vector | vector | ... | vector | scalar |
//
// so a row of odd length, whose start is aligned differently in every row, is still stored in 128-bit accesses.
// An input that is aligned as the output is loaded so too. Of another one, two neighbouring aligned vectors are loaded
// and shifted, except at the row's ends, where one of them would reach beyond it: there, element by element.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

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

// Two elements of 2 bytes as they lie in memory, the first one lower.
template <class T>
__device__ unsigned from_two_floats(float first, float second);
template <>
inline __device__ unsigned from_two_floats<__half>(float first, float second) {
  return bit_copy<unsigned>(__floats2half2_rn(first, second));
}
template <>
inline __device__ unsigned from_two_floats<__nv_bfloat16>(float first, float second) {
  return bit_copy<unsigned>(__floats2bfloat162_rn(first, second));
}

// Elements of type T in one vector access.
template <class T>
inline constexpr int kVectorWidth = kVectorBytes / static_cast<int>(sizeof(T));

// The elements as they lie in memory, in words: an element of 2 bytes would take a whole register.
template <class T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kWords = kVectorBytes / static_cast<int>(sizeof(unsigned));
  unsigned words[kWords];
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

struct RowCut {
  std::int64_t n, head, tail;
};

template <class T>
__device__ RowCut cut_row(const T* output, std::int64_t n) {
  const auto past_boundary = static_cast<int>(address_of(output) % kVectorBytes / sizeof(T));
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

template <class T>
__device__ T element(const Vector<T>& vector, int i) {
  constexpr int kPerWord = sizeof(unsigned) / sizeof(T), kBits = 8 * sizeof(T);
  const unsigned shifted = vector.words[i / kPerWord] >> (i % kPerWord * kBits);
  T out;
  std::memcpy(&out, &shifted, sizeof(T));
  return out;
}

template <class T>
__device__ Floats<kVectorWidth<T>> to_floats(const Vector<T>& vector) {
  Floats<kVectorWidth<T>> out;
#pragma unroll
  for (int i = 0; i < kVectorWidth<T>; ++i) out[i] = to_float(element(vector, i));
  return out;
}

template <class T>
__device__ Vector<T> from_floats(const Floats<kVectorWidth<T>>& values) {
  Vector<T> out;
#pragma unroll
  for (int i = 0; i < out.kWords; ++i) {
    if constexpr (sizeof(T) == sizeof(unsigned)) {
      out.words[i] = bit_copy<unsigned>(values[i]);
    } else {
      out.words[i] = from_two_floats<T>(values[2 * i], values[2 * i + 1]);
    }
  }
  return out;
}

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
      const auto values = to_floats(load_vector<Vector<T>>(address + i));
#pragma unroll
      for (int j = 0; j < kVectorWidth<T>; ++j) out[i + j] = values[j];
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
    store_vector(address, from_floats<T>(values));
  }
}

// The vector that begins `lead` elements into the first of two neighbouring ones.
template <class T>
__device__ Vector<T> shift_vectors(const Vector<T>& first, const Vector<T>& second, int lead) {
  constexpr int kWords = Vector<T>::kWords, kPerWord = sizeof(unsigned) / sizeof(T);
  unsigned words[2 * kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    words[i] = first.words[i];
    words[kWords + i] = second.words[i];
  }
  // By 2 words and by 1, for registers have no run-time index; then by what is less than a word.
#pragma unroll
  for (int step = 2; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i + step < 2 * kWords; ++i) words[i] = lead / kPerWord & step ? words[i + step] : words[i];
  }
  const int bits = lead % kPerWord * 8 * static_cast<int>(sizeof(T));
  Vector<T> out;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    out.words[i] = static_cast<unsigned>((std::uint64_t{words[i + 1]} << 32 | words[i]) >> bits);
  }
  return out;
}

// One row of an input, element type T, at columns of the cut: loads convert to fp32, unless they are of a vector as it
// is.
template <class T>
class RowReader {
 public:
  __device__ RowReader(const T* row, const RowCut& cut)
      : row_(row), n_(cut.n), lead_(static_cast<int>(address_of(row + cut.head) % kVectorBytes / sizeof(T))) {}

  // Whether the cut's vectors are aligned here too.
  __device__ bool is_aligned() const { return lead_ == 0; }
  __device__ Vector<T> load_aligned(std::int64_t column) const { return load_vector<Vector<T>>(row_ + column); }
  __device__ Vector<T> load_unaligned(std::int64_t column) const {
    const std::int64_t first = column - lead_, second = first + kVectorWidth<T>;
    if (first >= 0 && second + kVectorWidth<T> <= n_) {
      return shift_vectors(load_aligned(first), load_aligned(second), lead_);
    }
    T elements[kVectorWidth<T>];
#pragma unroll
    for (int i = 0; i < kVectorWidth<T>; ++i) elements[i] = row_[column + i];
    return bit_copy<Vector<T>>(elements);
  }

  template <int kColumns>
  __device__ Floats<kColumns> load(Width<kColumns>, std::int64_t column) const {
    if constexpr (kColumns == 1) {
      return load_floats<1>(row_ + column);
    } else {
      if (is_aligned()) return load_floats<kColumns>(row_ + column);
      Floats<kColumns> out;
#pragma unroll
      for (int i = 0; i < kColumns; i += kVectorWidth<T>) {
        const auto values = to_floats(load_unaligned(column + i));
#pragma unroll
        for (int j = 0; j < kVectorWidth<T>; ++j) out[i + j] = values[j];
      }
      return out;
    }
  }

 private:
  const T* row_;
  std::int64_t n_;
  int lead_;  // elements from the aligned address before each vector
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
