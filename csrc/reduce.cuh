// Teams, that is, the threads that share a row (ladder.h chooses); and reductions over a team.
//
//     thread(), threads()           this thread's place in the team, and its size
//     first_row(), row_stride()     the team's rows: it goes on until there are no more
//     own_shared_bytes()            what reductions take of the block's shared memory, from its beginning
//     reduce(value)                 the values of all its threads merged, the same bits in each; all threads call it
//
// A value to reduce is a struct of 4-byte fields whose default is the identity and whose `merge` is symmetric bit for
// bit, so that the butterfly leaves the same bits in every thread.
#pragma once

#include <cstring>
#include <type_traits>

#include "device.h"

namespace fusedformer {

inline constexpr int kWarpSize = 32;

template <int kCount>
struct Sums {
  float values[kCount] = {};

  __device__ void merge(const Sums& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += other.values[i];
  }
};

template <class Value>
__device__ Value shuffle_xor(const Value& value, int distance, unsigned lanes) {
  static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) % sizeof(unsigned) == 0);
  unsigned words[sizeof(Value) / sizeof(unsigned)];
  std::memcpy(words, &value, sizeof(Value));
#pragma unroll
  for (unsigned& word : words) word = __shfl_xor_sync(lanes, word, distance);
  Value out;
  std::memcpy(&out, words, sizeof(Value));
  return out;
}

template <class Value>
__device__ Value reduce_warp(Value value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value.merge(shuffle_xor(value, distance, 0xffffffffu));
  }
  return value;
}

// 8, 16 or 32 lanes of a warp for each row, several rows to a block: blockDim is (lanes, rows).
class Lanes {
 public:
  static constexpr TeamKind kKind = TeamKind::kLanes;

  __device__ int thread() const { return threadIdx.x; }
  __device__ int threads() const { return blockDim.x; }
  __device__ std::int64_t first_row() const { return blockIdx.x * std::int64_t{blockDim.y} + threadIdx.y; }
  __device__ std::int64_t row_stride() const { return gridDim.x * std::int64_t{blockDim.y}; }
  __device__ std::size_t own_shared_bytes() const { return 0; }

  template <class Value>
  __device__ Value reduce(Value value) const {
    const int first_lane = threadIdx.y * threads() % kWarpSize;
    const unsigned lanes = 0xffffffffu >> (kWarpSize - threads()) << first_lane;
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      if (distance < threads()) value.merge(shuffle_xor(value, distance, lanes));
    }
    return value;
  }
};

// The blocks of a cluster for each row, or one block where a cluster is one.
//
// Every warp leaves its value with every block, and after one barrier each warp merges all of them. Two sets of slots
// take turns: whoever writes a set again has passed the barrier of the other one, which all reached that read it.
class Blocks {
 public:
  static constexpr TeamKind kKind = TeamKind::kBlocks;
  static constexpr std::size_t kMaxValueBytes = 16;

  __host__ __device__ static std::size_t shared_bytes(int threads, int blocks) {
    return 2 * kMaxValueBytes * (threads / kWarpSize) * blocks;
  }

  __device__ std::size_t own_shared_bytes() const { return shared_bytes(blockDim.x, cluster_size()); }

  // The first reduction waits until all blocks of the cluster have begun.
  __device__ Blocks() {
    if (cluster_size() > 1) cluster_arrive();
  }

  __device__ int thread() const { return cluster_rank() * blockDim.x + threadIdx.x; }
  __device__ int threads() const { return cluster_size() * blockDim.x; }
  __device__ std::int64_t first_row() const { return blockIdx.x / cluster_size(); }
  __device__ std::int64_t row_stride() const { return gridDim.x / cluster_size(); }

  template <class Value>
  __device__ Value reduce(const Value& value) {
    static_assert(sizeof(Value) <= kMaxValueBytes);
    const unsigned thread = opaque(threadIdx.x), lane = thread % kWarpSize, warps = blockDim.x / kWarpSize, blocks = cluster_size();
    const unsigned count = warps * blocks;
    Value* slots = reinterpret_cast<Value*>(shared_memory<unsigned char>() + turn_ % 2 * count * kMaxValueBytes);
    Value* own_slot = slots + cluster_rank() * warps + thread / kWarpSize;
    const Value warp_value = reduce_warp(value);
    if (blocks == 1) {
      if (lane == 0) *own_slot = warp_value;
      __syncthreads();
    } else {
      if (turn_ == 0) cluster_wait();
      if (lane < blocks) store_in_block(own_slot, lane, warp_value);
      __syncwarp();
      cluster_arrive();
      cluster_wait();
    }
    turn_ = turn_ == 1 ? 2 : 1;
    Value total;
    for (unsigned slot = lane; slot < count; slot += kWarpSize) total.merge(slots[slot]);
    return reduce_warp(total);
  }

 private:
  int turn_ = 0;  // 0 the first time, then 1 and 2
};

// All threads of the grid, on one array: for what is computed element by element.
struct WholeGrid {
  __device__ std::int64_t thread() const { return blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; }
  __device__ std::int64_t threads() const { return gridDim.x * std::int64_t{blockDim.x}; }
};

}  // namespace fusedformer
