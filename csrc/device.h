// What differs between a GPU (nvcc) and the emulator (g++ over csrc/host), each difference with its two sides
// together. Kernels reach the hardware through CUDA's own names, which csrc/host/cuda_runtime.h stands in for,
// or through this file; nothing else in csrc asks which of the two it is compiled for.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

#include "ladder.h"

namespace fusedformer {

inline constexpr int kVectorBytes = 16;  // the widest access of one thread: LDG.128 and STG.128

inline __host__ __device__ std::uintptr_t address_of(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

template <class To, class From>
__device__ To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
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
  if (address_of(address) % kVectorBytes != 0) emulator::fail("a 16-byte load from a misaligned address");
  return *static_cast<const Vector*>(address);
}

template <class Vector>
void store_vector(void* address, const Vector& vector) {
  if (address_of(address) % kVectorBytes != 0) emulator::fail("a 16-byte store to a misaligned address");
  *static_cast<Vector*>(address) = vector;
}

template <class Value>
Value opaque(const Value& value) {
  return value;
}

// 2^value; a subnormal result is 0.
inline float exp2_flushed(float value) { return value < -126.0f ? 0.0f : exp2f(value); }

// A subnormal result is 0, as the instruction has it.
inline float reciprocal(float value) { return fabsf(value) > 0x1p126f ? 0.0f : 1.0f / value; }

inline float min_or_nan(float a, float b) { return a != a || b != b ? NAN : fminf(a, b); }

// Clusters: the blocks that share a row. Blocks of a cluster are numbered by rank.
inline unsigned cluster_rank() { return emulator::cluster_rank(); }
inline unsigned cluster_size() { return emulator::cluster_size(); }
inline void cluster_arrive(std::source_location where = std::source_location::current()) {
  emulator::cluster_arrive(where);
}
inline void cluster_wait(std::source_location where = std::source_location::current()) {
  emulator::cluster_wait(where);
}

template <class Value>
void store_in_block(Value* own, unsigned rank, const Value& value) {
  *static_cast<Value*>(emulator::shared_memory_of(rank, own)) = value;
}

// The GPU of $FUSEDFORMER_EMULATED_GPU: arch, processors, the largest cluster it has room for. An H200 by default.
inline Machine current_machine() {
  const auto gpu = emulator::numbers_of<3>("FUSEDFORMER_EMULATED_GPU").value_or(std::array{90, 132, 16});
  return {gpu[0], gpu[1], largest_cluster_of(gpu[0])};
}

// The rung of $FUSEDFORMER_EMULATED_RUNG, whatever the ladder says: threads, vectors held, blocks; 0 blocks are Lanes.
inline std::optional<Rung> forced_rung() {
  const auto numbers = emulator::numbers_of<3>("FUSEDFORMER_EMULATED_RUNG");
  if (!numbers) return std::nullopt;
  const auto [threads, held, blocks] = *numbers;
  const int cluster = std::max(blocks, 1);
  return Rung{held == 0 ? kAnyLength : std::int64_t{threads} * held * cluster, 0,
              blocks == 0 ? TeamKind::kLanes : TeamKind::kBlocks, threads, held, cluster};
}

#else

// Many waves on any GPU, and far below the limit of gridDim.x.
inline constexpr std::int64_t kMaxBlocks = 65536;

template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// Word by word, for the compiler may take apart the copy of a struct, and did take apart assignments of uint4, into
// narrow accesses; it leaves a store by name alone.
template <class Vector>
__device__ Vector load_vector(const void* address) {
  const uint4 words = *static_cast<const uint4*>(address);
  return {{words.x, words.y, words.z, words.w}};
}

template <class Vector>
__device__ void store_vector(void* address, const Vector& vector) {
  __stwb(static_cast<uint4*>(address), {vector.words[0], vector.words[1], vector.words[2], vector.words[3]});
}

// The same words, of which the compiler does not know it: what was computed from them before, such as elements in
// fp32, is computed again rather than kept in twice the registers.
template <class Value>
__device__ Value opaque(const Value& value) {
  unsigned words[sizeof(Value) / sizeof(unsigned)];
  std::memcpy(words, &value, sizeof(Value));
#pragma unroll
  for (unsigned& word : words) asm volatile("" : "+r"(word));
  Value out;
  std::memcpy(&out, words, sizeof(Value));
  return out;
}

// To 1 ulp, of a normal number. In one instruction, where a division calls a subroutine for the rare cases.
inline __device__ float reciprocal(float value) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
  return out;
}

// 2^value to 2 ulp; 0 where that is subnormal. In one instruction, where exp2f scales subnormal numbers by two more.
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

// Clusters: the blocks that share a row. Blocks of a cluster are numbered by rank. Before sm_90 each block is alone.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900

inline __device__ unsigned cluster_rank() { return 0; }
inline __device__ unsigned cluster_size() { return 1; }
inline __device__ void cluster_arrive() {}
inline __device__ void cluster_wait() {}

template <class Value>
__device__ void store_in_block(Value* own, unsigned, const Value& value) {
  *own = value;
}

#else

inline __device__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

inline __device__ unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// The two halves of a barrier of all threads of the cluster. What was stored before the first half is seen after the
// second. By whole warps.
inline __device__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
inline __device__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Stores where block `rank` of the cluster has what is at `own` in this block's shared memory. Between the first
// barrier of the cluster, before which that block may not have begun, and the last, after which it may have exited.
template <class Value>
__device__ void store_in_block(Value* own, unsigned rank, const Value& value) {
  static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) % sizeof(unsigned) == 0);
  unsigned words[sizeof(Value) / sizeof(unsigned)];
  std::memcpy(words, &value, sizeof(Value));
  unsigned address;
  const auto own_address = static_cast<unsigned>(__cvta_generic_to_shared(own));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own_address), "r"(rank));
#pragma unroll
  for (const unsigned word : words) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
    address += sizeof(unsigned);
  }
}

#endif

// The current device. Asked for once: every launch needs it.
inline Machine current_machine() {
  constexpr int kMaxDevices = 64;
  static std::atomic<std::uint64_t> known[kMaxDevices];  // arch and processors
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return {};
  std::uint64_t packed = known[device].load(std::memory_order_relaxed);
  if (packed == 0) {
    const auto attribute = [&](cudaDeviceAttr name) {
      int value = 0;
      cudaDeviceGetAttribute(&value, name, device);
      return static_cast<std::uint64_t>(value);
    };
    const std::uint64_t arch =
        10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
    packed = arch << 32 | attribute(cudaDevAttrMultiProcessorCount);
    known[device].store(packed, std::memory_order_relaxed);
  }
  const int arch = static_cast<int>(packed >> 32);
  return {arch, static_cast<int>(packed & 0xffffffff), largest_cluster_of(arch)};
}

inline std::optional<Rung> forced_rung() { return std::nullopt; }

#endif

}  // namespace fusedformer
