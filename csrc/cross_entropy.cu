// Cross entropy of logits and class indices, with class weights and label smoothing, and its gradient.
//
// A row x of n logits and its target t; w: class weights, s: smoothing; p = softmax(x), lse = log sum_j exp(x_j):
//
//     loss = (1 - s) w_t (lse - x_t) + s / n sum_j w_j (lse - x_j)
//     dx_j = (dloss share + dlse) p_j - dloss s / n w_j - [j = t] dloss (1 - s) w_t,  share = (1 - s) w_t + s / n sum_j w_j
//
// lse has a gradient of its own, by which a penalty of its square (z-loss) reaches the logits. Of a row are kept its
// maximum and the sum of exp(x_j - maximum), and distances are summed from x_t, so that logits which are all large lose
// no digits, as p = exp(x - lse) would. Traffic, in elements of a row: 1 forward, all sums being
// made in one pass; 2 backward, which has no sum to wait for, so that any number of blocks shares a row. An ignored
// row is read like any other, for to look at its target first would delay all rows; what it holds goes nowhere.
// The loss of all rows takes two numbers and a target of each, in two stages without atomics.
// Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7 (smoothing).
#include "launch.h"
#include "max_sum.cuh"
#include "row.cuh"
#include "strides.cuh"

namespace fusedformer {
namespace {

// What a row's sums are multiplied by. Of a target that is no column the weight is NaN, and with it the loss and the
// gradient: nothing is read there, and nobody takes the row for a right one.
struct RowLabel {
  __device__ RowLabel(const Labels& labels, std::int64_t row, std::int64_t n)
      : target(labels.target[row]), is_ignored(target == labels.ignore_index), is_column(target >= 0 && target < n) {
    const float weight = !is_column ? NAN : labels.weight == nullptr ? 1.0f : labels.weight[target];
    target_share = (1.0f - labels.smoothing) * weight;
    each_share = labels.smoothing / static_cast<float>(n);
    const float all_share = labels.weight == nullptr ? labels.smoothing : each_share * *labels.weight_sum;
    share = labels.smoothing > 0.0f ? target_share + all_share : target_share;
  }

  std::int64_t target;
  bool is_ignored, is_column;
  float target_share, each_share, share;
};

// What one pass over a row gathers.
template <class T>
struct RowSums {
  MaxSum<T> exponentials;
  float distances = 0.0f;  // sum_j w_j (x_j - origin)

  __device__ void merge(const RowSums& other) {
    exponentials.merge(other.exponentials);
    distances += other.distances;
  }
};

// All threads of the grid along y, for each row: for what has no sum over the row.
class Chunks {
 public:
  static constexpr TeamKind kKind = TeamKind::kLanes;

  __device__ int thread() const { return blockIdx.y * blockDim.x + threadIdx.x; }
  __device__ int threads() const { return gridDim.y * blockDim.x; }
  __device__ std::int64_t first_row() const { return blockIdx.x * std::int64_t{blockDim.y} + threadIdx.y; }
  __device__ std::int64_t row_stride() const { return gridDim.x * std::int64_t{blockDim.y}; }
};

using ChunkShape = RowShape<Chunks, 4>;

}  // namespace

template <class T, bool kSmooth, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kHeld == 0 ? 1 : Shape::kBlocks)  // what streams would spill
    cross_entropy_fwd_kernel(const T* __restrict__ logits,  // rows of n
                             const Labels labels,
                             float* __restrict__ loss,  // (rows,)
                             float* __restrict__ lse,   // (rows,)
                             float* __restrict__ max,   // (rows,)
                             float* __restrict__ sum,   // (rows,)
                             std::int64_t rows, std::int64_t n, const RowStrides logits_strides) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const T* x = logits + row_offset(logits_strides, row);
    const Columns<T, Shape> columns(team, x, n);
    const Row<T, Shape> x_row(x, columns);
    const ParameterReader<float> weight_row(labels.weight, columns.cut(), 1.0f);
    const RowLabel label(labels, row, n);
    const float at_target = label.is_column ? to_float(x[label.target]) : 0.0f;
    const float origin = fabsf(at_target) < INFINITY ? at_target : 0.0f;

    RowSums<T> sums;
    columns.for_each([&](auto place) {
      const auto values = x_row.load(place);
      sums.exponentials.add(values);
      if constexpr (kSmooth) {
        const auto weights = weight_row.load(place);
#pragma unroll
        for (int i = 0; i < place.kCount; ++i) sums.distances += weights[i] * (values[i] - origin);
      }
    });
    sums = team.reduce(sums);

    if (team.thread() != 0) continue;
    const float row_max = sums.exponentials.max, log_sum = logf(sums.exponentials.sum);
    float row_loss = label.target_share * (row_max - at_target + log_sum);
    if constexpr (kSmooth) {
      const float total_weight = labels.weight == nullptr ? static_cast<float>(n) : *labels.weight_sum;
      row_loss += label.each_share * (total_weight * (row_max - origin + log_sum) - sums.distances);
    }
    loss[row] = label.is_ignored ? 0.0f : row_loss;
    lse[row] = label.is_ignored ? 0.0f : row_max + log_sum;
    max[row] = row_max;
    sum[row] = sums.exponentials.sum;
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    cross_entropy_bwd_kernel(const float* __restrict__ dloss,  // (rows,), strided
                             const float* __restrict__ dlse,   // (rows,) or null
                             const T* __restrict__ logits,     // rows of n
                             const Labels labels,
                             const float* __restrict__ max,  // (rows,)
                             const float* __restrict__ sum,  // (rows,)
                             T* __restrict__ dlogits,        // (rows, n)
                             std::int64_t rows, std::int64_t n, const RowStrides dloss_strides,
                             const RowStrides logits_strides) {
  typename Shape::Team team;
  for (std::int64_t row = team.first_row(); row < rows; row += team.row_stride()) {
    const Columns<T, Shape> columns(team, dlogits + row * n, n);
    const Row<T, Shape> x_row(logits + row_offset(logits_strides, row), columns);
    const RowWriter<T> dx_row(dlogits + row * n);
    const RowLabel label(labels, row, n);
    const ParameterReader<float> weight_row(labels.smoothing > 0.0f ? labels.weight : nullptr, columns.cut(), 1.0f);
    const float row_dloss = dloss[row_offset(dloss_strides, row)], row_max = max[row];
    const float scale = (row_dloss * label.share + (dlse == nullptr ? 0.0f : dlse[row])) / sum[row];
    const float each = row_dloss * label.each_share, at_target = row_dloss * label.target_share;

    columns.for_each([&](auto place) {
      auto values = x_row.load(place);
      const auto weights = weight_row.load(place);
#pragma unroll
      for (int i = 0; i < place.kCount; ++i) {
        values[i] = scale * exp_for<T>(values[i] - row_max) - each * weights[i];
      }
      const std::int64_t target = label.target - place.column;
      if (target >= 0 && target < place.kCount) {
#pragma unroll
        for (int i = 0; i < place.kCount; ++i) values[i] -= i == static_cast<int>(target) ? at_target : 0.0f;
      }
      dx_row.store(place.column, label.is_ignored ? Floats<place.kCount>{} : values);
    });
  }
}

cudaError_t cross_entropy_fwd(DType dtype, const void* logits, const Labels& labels, float* loss, float* lse,
                              float* max, float* sum, std::int64_t rows, std::int64_t n,
                              const RowStrides& logits_strides, cudaStream_t stream) {
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return dispatch_row<T>(rows, n, [&](auto row_shape, const LaunchShape& shape) {
      using Shape = typename decltype(row_shape)::type;
      const auto kernel = labels.smoothing > 0.0f ? cross_entropy_fwd_kernel<T, true, Shape>
                                                  : cross_entropy_fwd_kernel<T, false, Shape>;
      return launch(kernel, shape, stream, static_cast<const T*>(logits), labels, loss, lse, max, sum, rows, n,
                    logits_strides);
    });
  });
}

namespace {

// As many lanes as a row fills, to a whole block; then several blocks.
template <class T>
LaunchShape chunk_shape(std::int64_t rows, std::int64_t n) {
  const std::int64_t vectors = vectors_of_row(n, sizeof(T));
  unsigned threads = 8;
  while (threads < ChunkShape::kThreads && threads * ChunkShape::kHeld < vectors) threads *= 2;
  const unsigned rows_of_block = ChunkShape::kThreads / threads;
  const auto chunks = static_cast<unsigned>(ceil_div(vectors, threads * ChunkShape::kHeld));
  return {dim3(grid_for(rows, rows_of_block), chunks), threads, 0, rows_of_block};
}

}  // namespace

cudaError_t cross_entropy_bwd(DType dtype, const float* dloss, const float* dlse, const void* logits,
                              const Labels& labels, const float* max, const float* sum, void* dlogits,
                              std::int64_t rows, std::int64_t n, const RowStrides& dloss_strides,
                              const RowStrides& logits_strides, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return dispatch(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return launch(cross_entropy_bwd_kernel<T, ChunkShape>, chunk_shape<T>(rows, n), stream, dloss, dlse,
                  static_cast<const T*>(logits), labels, max, sum, static_cast<T*>(dlogits), rows, n, dloss_strides,
                  logits_strides);
  });
}

namespace {

constexpr int kSumThreads = 512, kSumsOfThread = 8;
constexpr std::int64_t kMaxSums = 1024;  // that the second stage goes through

}  // namespace

// Of rows that are not ignored; the others' loss and lse are 0. A target that is no class has made its loss NaN.
struct alignas(kVectorBytes) LossSums {
  float loss = 0.0f, square = 0.0f, weight = 0.0f, count = 0.0f;  // square: of lse

  __device__ void merge(const LossSums& other) {
    loss += other.loss;
    square += other.square;
    weight += other.weight;
    count += other.count;
  }
};

namespace {

__device__ void store_loss(const LossSums& sums, const LossOutput& output) {
  const float weight = output.is_mean ? sums.weight : 1.0f, count = output.is_mean ? sums.count : 1.0f;
  const float penalty = output.z_loss > 0.0f ? output.z_loss * sums.square / count : 0.0f;
  *output.loss = sums.loss / weight + penalty;
  output.scales[0] = 1.0f / weight;
  output.scales[1] = 2.0f * output.z_loss / count;
}

}  // namespace

// Stage one: the sums of the block's rows; of a single block already the loss.
__global__ void __launch_bounds__(kSumThreads)
    cross_entropy_sum_kernel(const float* __restrict__ loss,  // (rows,)
                             const float* __restrict__ lse,   // (rows,)
                             const Labels labels,
                             LossSums* __restrict__ block_sums,  // (gridDim.x,), or null where there is one block
                             std::int64_t rows, std::int64_t n, const LossOutput output) {
  const WholeGrid grid;
  Blocks team;
  LossSums sums;
  for (std::int64_t row = grid.thread(); row < rows; row += grid.threads()) {
    const std::int64_t target = labels.target[row];
    const float row_lse = lse[row];
    sums.loss += loss[row];
    sums.square += row_lse * row_lse;
    if (target == labels.ignore_index) continue;
    sums.count += 1.0f;
    if (labels.weight == nullptr) {
      sums.weight += 1.0f;
    } else if (target >= 0 && target < n) {
      sums.weight += labels.weight[target];
    }
  }
  sums = team.reduce(sums);
  if (threadIdx.x != 0) return;
  if (block_sums == nullptr) {
    store_loss(sums, output);
  } else {
    block_sums[blockIdx.x] = sums;
  }
}

// Stage two, of one block.
__global__ void __launch_bounds__(kSumThreads)
    cross_entropy_total_kernel(const LossSums* __restrict__ block_sums,  // (count,)
                               std::int64_t count, const LossOutput output) {
  Blocks team;
  LossSums sums;
  for (std::int64_t block = threadIdx.x; block < count; block += kSumThreads) {
    sums.merge(block_sums[block]);
  }
  sums = team.reduce(sums);
  if (threadIdx.x == 0) store_loss(sums, output);
}

std::int64_t cross_entropy_sums(std::int64_t rows) {
  return std::clamp<std::int64_t>(ceil_div(rows, kSumThreads * kSumsOfThread), 1, kMaxSums);
}

cudaError_t cross_entropy_sum(const float* loss, const float* lse, const Labels& labels, float* workspace,
                              const LossOutput& output, std::int64_t rows, std::int64_t n, cudaStream_t stream) {
  const std::int64_t blocks = cross_entropy_sums(rows);
  auto* const block_sums = blocks > 1 ? reinterpret_cast<LossSums*>(workspace) : nullptr;
  const std::size_t shared_bytes = Blocks::shared_bytes(kSumThreads, 1);
  const LaunchShape shape = {dim3{static_cast<unsigned>(blocks)}, kSumThreads, shared_bytes};
  const cudaError_t error =
      launch(cross_entropy_sum_kernel, shape, stream, loss, lse, labels, block_sums, rows, n, output);
  if (error != cudaSuccess || blocks == 1) return error;
  return launch(cross_entropy_total_kernel, {dim3{1}, kSumThreads, shared_bytes}, stream, block_sums, blocks, output);
}

}  // namespace fusedformer
