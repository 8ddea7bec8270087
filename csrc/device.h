// What differs between a GPU (nvcc) and the emulator (g++ over csrc/host), each difference with its two sides
// together. Kernels reach the hardware through CUDA's own names, which csrc/host/cuda_runtime.h stands in for,
// or through this file; nothing else in csrc asks which of the two it is compiled for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace fusedformer {

inline constexpr int kVectorBytes = 16;  // the widest access of one thread: LDG.128 and STG.128

inline __device__ bool is_vector_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % kVectorBytes == 0;
}

#ifdef FUSEDFORMER_EMULATED

// Small, so that the emulated tests go through the loop over rows of every kernel.
inline constexpr std::int64_t kMaxBlocks = 3;

// The block's dynamic shared memory. A `__shared__` variable would have no per-block home in the emulator.
template <class T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory());
}

template <class Vector>
Vector load_vector(const void* address) {
  if (!is_vector_aligned(address)) emulator::fail("a 16-byte load from a misaligned address");
  return *static_cast<const Vector*>(address);
}

template <class Vector>
void store_vector(void* address, const Vector& vector) {
  if (!is_vector_aligned(address)) emulator::fail("a 16-byte store to a misaligned address");
  *static_cast<Vector*>(address) = vector;
}

// 2^value; a subnormal result is 0.
inline float exp2_flushed(float value) { return value < -126.0f ? 0.0f : exp2f(value); }

// A subnormal result is 0, as the instruction has it.
inline float reciprocal(float value) { return fabsf(value) > 0x1p126f ? 0.0f : 1.0f / value; }

inline float min_or_nan(float a, float b) { return a != a || b != b ? NAN : fminf(a, b); }

#else

// Many waves on any GPU, and far below the limit of gridDim.x.
inline constexpr std::int64_t kMaxBlocks = 65536;

template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

template <class Vector>
__device__ Vector load_vector(const void* address) {
  return *static_cast<const Vector*>(address);
}

// By name, for an assignment is split into narrower stores where the compiler has lost sight of the alignment.
template <class Vector>
__device__ void store_vector(void* address, const Vector& vector) {
  uint4 words;
  static_assert(sizeof(Vector) == sizeof(words));
  std::memcpy(&words, &vector, sizeof(words));
  __stwb(static_cast<uint4*>(address), words);
}

// 2^value to 2 ulp, in one instruction; a subnormal result is 0.
inline __device__ float exp2_flushed(float value) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
  return out;
}

// fminf, which drops a NaN, that does not.
inline __device__ float min_or_nan(float a, float b) {
  float out;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}

// To 1 ulp, of a normal number. In one instruction, where a division calls a subroutine for the rare cases.
inline __device__ float reciprocal(float value) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
  return out;
}

#endif

}  // namespace fusedformer
