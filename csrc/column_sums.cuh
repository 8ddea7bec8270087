// Sums over rows, of each column, by the teams that go over the rows anyway (row.cuh): one pass over memory for both.
//
// Where all rows of the output are aligned alike, a thread has the same columns in each. It adds them up in fp32, in
// shared memory, whose bandwidth is to spare where registers are not. A block that has come to its last row writes its
// sums to a row of `partials`; sum_partials (columns.cuh) adds those up. No atomics: which rows a team has, and in what
// order they are added, follows from the sizes and the number of processors alone.
#pragma once

#include "columns.cuh"
#include "row.cuh"

namespace fusedformer {

// Rows of `partials` that teams of this plan write, each with `sums` numbers of every column; 0 where they cannot.
inline std::int64_t summing_teams(const RowPlan& plan, std::int64_t rows, std::int64_t n, int element_size, int sums,
                                  const Machine& machine) {
  if (rows == 0 || plan.held == 0 || n % (kVectorBytes / element_size) != 0) return 0;
  const std::int64_t bytes = sums * column_sum_bytes(plan, element_size);
  const auto own_bytes = static_cast<std::int64_t>(Blocks::shared_bytes(plan.threads, plan.cluster));
  if (bytes + own_bytes > shared_bytes_of(machine.arch)) return 0;
  return std::min(lasting_teams(plan, rows, machine.processors), kMaxBlocks);
}

// The same launch for that many teams, with room for their sums.
inline LaunchShape summing_shape(LaunchShape shape, const RowPlan& plan, std::int64_t teams, int element_size,
                                 int sums) {
  shape.grid = dim3{static_cast<unsigned>(teams) * shape.cluster};
  shape.shared_bytes += sums * column_sum_bytes(plan, element_size);
  return shape;
}

// One number of each column of this thread.
template <class T, class Shape>
class ColumnSums {
 public:
  // The block's array number `which`.
  __device__ ColumnSums(const typename Shape::Team& team, int which,
                        float* partials)  // (teams, n), or null where the sums are not wanted
      : partials_(partials), threads_(blockDim.x * blockDim.y), thread_(threadIdx.y * blockDim.x + threadIdx.x) {
    auto* const arrays = reinterpret_cast<Quad*>(shared_memory<unsigned char>() + team.own_shared_bytes());
    quads_ = arrays + which * kQuadsOfThread * threads_;
    if (partials_ == nullptr) return;
#pragma unroll
    for (int i = 0; i < kQuadsOfThread; ++i) quads_[i * threads_ + thread_] = {};
  }

  template <int kColumns>
  __device__ void add(const Place<kColumns>& place, const Floats<kColumns>& values) {
    if constexpr (Shape::kHeld > 0 && kColumns > 1) {
      if (partials_ == nullptr) return;
#pragma unroll
      for (int i = 0; i < kQuadsOfVector; ++i) {
        Quad& place_of_sum = quads_[(place.slot * kQuadsOfVector + i) * threads_ + thread_];
        Quad sum = place_of_sum;
#pragma unroll
        for (int j = 0; j < 4; ++j) sum.values[j] += values[4 * i + j];
        place_of_sum = sum;
      }
    }
  }

  // After the last row. All threads of the block call it.
  __device__ void store(const typename Shape::Team& team, std::int64_t n) const {
    if (partials_ == nullptr) return;
    __syncthreads();
    const RowWriter<float> team_partials(partials_ + blockIdx.x / cluster_size() * n);
    const int group_threads = blockDim.x;
    const std::int64_t first_thread = team.thread() - threadIdx.x;
    for (int at = thread_; at < kQuadsOfThread * group_threads; at += threads_) {
      const int quad = at / group_threads, thread = at % group_threads;
      const std::int64_t vector = quad / kQuadsOfVector * std::int64_t{team.threads()} + first_thread + thread;
      const std::int64_t column = vector * kVectorWidth<T> + quad % kQuadsOfVector * 4;
      if (column >= n) continue;
      Floats<4> sum = {};
      for (unsigned group = 0; group < blockDim.y; ++group) {
        const Quad part = quads_[quad * threads_ + group * group_threads + thread];
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += part.values[j];
      }
      team_partials.store(column, sum);
    }
  }

 private:
  struct alignas(kVectorBytes) Quad {
    float values[4];
  };
  static constexpr int kQuadsOfVector = kVectorWidth<T> / 4, kQuadsOfThread = kQuadsOfVector * Shape::kHeld;

  float* partials_;
  Quad* quads_;  // (kQuadsOfThread, threads of the block): neighbouring threads have neighbouring banks
  int threads_, thread_;
};

}  // namespace fusedformer
