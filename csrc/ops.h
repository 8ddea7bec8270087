// The launchers: plain C++ over raw pointers, all that register*.cpp see of the kernels.
//
// Arrays are contiguous and on the current device; a row is the last dimension. `rows` and `n` may be 0. Launchers
// return the error of the launch and do not wait for the kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>

namespace fusedformer {

enum class DType { kFloat32, kFloat16, kBFloat16 };

// Where rows begin that need not be contiguous, in elements: the leading dimensions with their sizes and strides, the
// innermost first, those that go on from one another taken as one. With more than one level, below 2^32 rows.
struct RowStrides {
  static constexpr int kMaxLevels = 4;
  int levels;
  unsigned sizes[kMaxLevels];  // not of the last level
  std::int64_t strides[kMaxLevels];
};

// y = softmax(x) over each row; x, y: (rows, n). A row of -inf alone gives 0.
cudaError_t softmax_fwd(DType dtype, const void* x, void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream);

// dx = y (dy - sum(dy y)); dy, y, dx: (rows, n).
cudaError_t softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                        cudaStream_t stream);

// y = log(softmax(x)) over each row; x, y: (rows, n).
cudaError_t log_softmax_fwd(DType dtype, const void* x, void* y, std::int64_t rows, std::int64_t n,
                            cudaStream_t stream);

// dx = dy - exp(y) sum(dy); dy, y, dx: (rows, n).
cudaError_t log_softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                            cudaStream_t stream);

// y = softmax(scale x + mask) over each row, 0 where hidden; x, mask: rows of n, read in place; y: (rows, n). `additive` is
// the type of an additive mask, x's or fp32; without it, mask is boolean, true for what is seen, or null. `queries`, if
// not 0, makes rows causal: each `queries` of them are a matrix, whose last row sees all columns.
cudaError_t masked_softmax_fwd(DType dtype, std::optional<DType> additive, const void* x, const void* mask, void* y,
                               std::int64_t rows, std::int64_t n, std::int64_t queries, const RowStrides& x_strides,
                               const RowStrides& mask_strides, float scale, cudaStream_t stream);

// dx = scale y (dy - sum(dy y)), 0 where y is 0 or hidden; dy, y, dx: (rows, n).
cudaError_t masked_softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                               std::int64_t queries, float scale, cudaStream_t stream);

enum class Gelu { kErf, kTanh };

// y = gelu(x); x, y: (n,).
cudaError_t gelu_fwd(DType dtype, Gelu form, const void* x, void* y, std::int64_t n, cudaStream_t stream);

// dx = dy gelu'(x); dy, x, dx: (n,).
cudaError_t gelu_bwd(DType dtype, Gelu form, const void* dy, const void* x, void* dx, std::int64_t n,
                     cudaStream_t stream);

// y = (x - mean) rstd weight + bias; x, y: (rows, n); mean, rstd: (rows,) fp32; weight, bias: (n,) or null, of type
// `weight_dtype`, which is x's or fp32.
cudaError_t layer_norm_fwd(DType dtype, DType weight_dtype, const void* x, const void* weight, const void* bias,
                           float eps, void* y, float* mean, float* rstd, std::int64_t rows, std::int64_t n,
                           cudaStream_t stream);

// dx: (rows, n); weight: (n,) or null.
cudaError_t layer_norm_bwd_input(DType dtype, DType weight_dtype, const void* dy, const void* x, const void* weight,
                                 const float* mean, const float* rstd, void* dx, std::int64_t rows, std::int64_t n,
                                 cudaStream_t stream);

// Partial sums that layer_norm_bwd_weight keeps of each column: its workspace is (this, n) fp32 for each gradient.
std::int64_t layer_norm_bwd_partials(std::int64_t rows);

// dweight, dbias: (n,) of type `weight_dtype`, each null where it is not wanted, as is its workspace then.
cudaError_t layer_norm_bwd_weight(DType dtype, DType weight_dtype, const void* dy, const void* x, const float* mean,
                                  const float* rstd, float* dweight_partials, float* dbias_partials, void* dweight,
                                  void* dbias, std::int64_t rows, std::int64_t n, cudaStream_t stream);

// What cross entropy knows of each row beside its logits.
struct Labels {
  const std::int64_t* target;  // (rows,)
  const float* weight;         // (n,) or null: all 1
  const float* weight_sum;     // () or null as weight is
  std::int64_t ignore_index;
  float smoothing;
};

// loss, lse, max, sum: (rows,), of logits: rows of n, read in place; sum is of exp(logits - max), and lse = max +
// log(sum). loss and lse are 0 where target is ignore_index; loss is NaN where it is no column.
cudaError_t cross_entropy_fwd(DType dtype, const void* logits, const Labels& labels, float* loss, float* lse,
                              float* max, float* sum, std::int64_t rows, std::int64_t n,
                              const RowStrides& logits_strides, cudaStream_t stream);

// dlogits: (rows, n); dloss: (rows,), read in place; dlse: (rows,) or null; max, sum: (rows,).
cudaError_t cross_entropy_bwd(DType dtype, const float* dloss, const float* dlse, const void* logits,
                              const Labels& labels, const float* max, const float* sum, void* dlogits,
                              std::int64_t rows, std::int64_t n, const RowStrides& dloss_strides,
                              const RowStrides& logits_strides, cudaStream_t stream);

}  // namespace fusedformer
