// From run-time types and sizes to a kernel launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <initializer_list>

#include "device.h"
#include "ladder.h"
#include "ops.h"
#include "row.cuh"

namespace fusedformer {

// A C++ type as a value.
template <class T>
struct Type {
  using type = T;
};

// Calls launch(Type<T>) with the element type that dtype names.
template <class Launch>
cudaError_t dispatch(DType dtype, Launch launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(Type<float>{});
    case DType::kFloat16:
      return launch(Type<__half>{});
    case DType::kBFloat16:
      return launch(Type<__nv_bfloat16>{});
  }
  return cudaErrorInvalidValue;
}

// Calls launch(Type<T>, Type<W>) with the types of an input and of its weight or bias, which is fp32 or T.
template <class Launch>
cudaError_t dispatch_weight(DType dtype, DType weight_dtype, Launch launch) {
  return dispatch(dtype, [&](auto element) {
    if (weight_dtype == DType::kFloat32) return launch(element, Type<float>{});
    return weight_dtype == dtype ? launch(element, element) : cudaErrorInvalidValue;
  });
}

// Whether vectors of T can be read and written at all of these addresses, and at any multiple of `stride` elements from
// them.
template <class T>
bool allows_vectors(std::int64_t stride, std::initializer_list<const void*> addresses) {
  const auto is_aligned = [](const void* address) { return address_of(address) % kVectorBytes == 0; };
  return stride % kVectorWidth<T> == 0 && std::all_of(addresses.begin(), addresses.end(), is_aligned);
}

// Calls launch(Width<elements that a thread takes at once>): a vector, or a single one, which its neighbour follows.
template <class T, class Launch>
cudaError_t dispatch_width(bool vectors, Launch launch) {
  return vectors ? launch(Width<kVectorWidth<T>>{}) : launch(Width<1>{});
}

inline constexpr std::size_t kUsualSharedBytes = 48 * 1024;  // more has to be asked for

struct LaunchShape {
  dim3 grid;
  unsigned threads;  // of a block, or of each of its groups
  std::size_t shared_bytes = 0;
  unsigned groups = 1;   // of a block: blockDim.y
  unsigned cluster = 1;  // blocks that share their memory
};

// Lets the kernel be launched in clusters of more than every GPU has; an error where this one has none that large.
template <class Kernel>
cudaError_t allow_large_cluster(Kernel kernel, const cudaLaunchConfig_t& config) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  int clusters = 0;
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  return error != cudaSuccess || clusters > 0 ? error : cudaErrorInvalidClusterSize;
}

// Lets the kernel have more shared memory than every launch may.
template <class Kernel>
cudaError_t allow_shared_memory(Kernel kernel, std::size_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3{shape.threads, shape.groups};
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  if (shape.cluster > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {shape.cluster, 1, 1};
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  if (shape.shared_bytes > kUsualSharedBytes) {
    if (const cudaError_t error = allow_shared_memory(kernel, shape.shared_bytes); error != cudaSuccess) return error;
  }
  if (shape.cluster > kPortableCluster) {
    if (const cudaError_t error = allow_large_cluster(kernel, config); error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

// Enough blocks for `work` items, unless that is so many that each block had better loop.
inline unsigned grid_for(std::int64_t work, std::int64_t work_per_block) {
  return static_cast<unsigned>(std::min(ceil_div(work, work_per_block), kMaxBlocks));
}

// Calls launch(Type<RowShape>, shape) with the shape of the plan; none but those of the ladder's rungs are compiled.
template <const auto& kRungs, class Launch>
cudaError_t launch_plan(const RowPlan& plan, std::int64_t rows, Launch launch) {
  const auto cluster = static_cast<unsigned>(plan.cluster), threads = static_cast<unsigned>(plan.threads);
  LaunchShape shape = {dim3{cluster * grid_for(rows, plan.rows_per_block)}, threads};
  if (plan.team == TeamKind::kLanes) {
    shape.groups = static_cast<unsigned>(plan.rows_per_block);
  } else {
    shape.shared_bytes = Blocks::shared_bytes(plan.threads, plan.cluster);
    shape.cluster = cluster;
  }
  cudaError_t error = cudaErrorInvalidValue;
  const auto launch_if_planned = [&](auto row_shape) {
    using Shape = typename decltype(row_shape)::type;
    if constexpr (has_shape(kRungs, Shape::Team::kKind, Shape::kHeld)) {
      if (plan.team == Shape::Team::kKind && plan.held == Shape::kHeld) error = launch(row_shape, shape);
    }
  };
  launch_if_planned(Type<RowShape<Lanes, 1>>{});
  launch_if_planned(Type<RowShape<Lanes, 4>>{});
  launch_if_planned(Type<RowShape<Lanes, 8>>{});
  launch_if_planned(Type<RowShape<Blocks, 0>>{});
  launch_if_planned(Type<RowShape<Blocks, 4>>{});
  launch_if_planned(Type<RowShape<Blocks, 8>>{});
  return error;
}

// How threads share rows of n elements: what the ladder says, unless a rung is forced whose shape it has. None if that
// one is too short.
inline std::optional<RowPlan> find_plan(std::int64_t rows, std::int64_t n, int element_size, const Machine& machine,
                                        Ladder ladder) {
  const std::optional<Rung> forced = forced_rung();
  if (!forced || !has_shape(ladder, forced->team, forced->held)) {
    return plan_row(rows, n, element_size, machine, ladder);
  }
  const std::int64_t vectors = vectors_of_row(n, element_size);
  if (vectors > forced->longest) return std::nullopt;
  return fit_rung(*forced, rows, vectors, machine.processors);
}

// Chooses how threads share rows of n elements of type T, and calls launch(Type<RowShape>, shape) (row.cuh).
template <class T, const auto& kRungs = kLadder, class Launch>
cudaError_t dispatch_row(std::int64_t rows, std::int64_t n, Launch launch) {
  if (rows == 0) return cudaSuccess;
  Machine machine = current_machine();
  for (;;) {
    const std::optional<RowPlan> plan = find_plan(rows, n, sizeof(T), machine, kRungs);
    if (!plan) return cudaErrorInvalidValue;
    const cudaError_t error = launch_plan<kRungs>(*plan, rows, launch);
    const int refused = std::min(plan->cluster, machine.largest_cluster);
    if (error == cudaSuccess || refused <= kPortableCluster) return error;
    cudaGetLastError();  // this GPU, or the part of it that is ours, has no room for so large a cluster
    machine.largest_cluster = kPortableCluster;
  }
}

}  // namespace fusedformer
