// The launchers: plain C++ over raw pointers, all that the registration files see of the kernels.
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

// By their numbers in the schemas, which kernels/reference.py has too.
enum class Activation { kGeluErf, kGeluTanh, kSilu, kRelu };

// y = gelu(x); x, y: (n,); activation: one of the two GELUs.
cudaError_t gelu_fwd(DType dtype, Activation activation, const void* x, void* y, std::int64_t n, cudaStream_t stream);

// dx = dy gelu'(x); dy, x, dx: (n,).
cudaError_t gelu_bwd(DType dtype, Activation activation, const void* dy, const void* x, void* dx, std::int64_t n,
                     cudaStream_t stream);

// y = activation(x + bias); x, y: (rows, n); bias: (n,) of type `bias_dtype`, which is x's or fp32; a GELU or ReLU.
cudaError_t bias_activation_fwd(DType dtype, DType bias_dtype, Activation activation, const void* x, const void* bias,
                                void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream);

// Partial sums that bias_activation_bwd keeps of each column: its workspace is (this, n) fp32.
std::int64_t bias_activation_bwd_partials(std::int64_t rows, std::int64_t n);

// dx = dy activation'(x + bias), dbias = sum_rows dx; dbias: (n,), null where it is not wanted, as is its workspace.
cudaError_t bias_activation_bwd(DType dtype, DType bias_dtype, Activation activation, const void* dy, const void* x,
                                const void* bias, void* dx, float* dbias_partials, void* dbias, std::int64_t rows,
                                std::int64_t n, cudaStream_t stream);

// (rows, n), each row contiguous; `row_stride` elements from one row to the next.
template <class Pointer>
struct StridedRows {
  Pointer data;
  std::int64_t row_stride;
};

// y = activation(gate) up; y: (rows, n) contiguous; a GELU or SiLU.
cudaError_t glu_fwd(DType dtype, Activation activation, StridedRows<const void*> gate, StridedRows<const void*> up,
                    void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream);

// dgate = dy up activation'(gate), dup = dy activation(gate); dy: (rows, n) contiguous.
cudaError_t glu_bwd(DType dtype, Activation activation, const void* dy, StridedRows<const void*> gate,
                    StridedRows<const void*> up, StridedRows<void*> dgate, StridedRows<void*> dup, std::int64_t rows,
                    std::int64_t n, cudaStream_t stream);


// Elements are dropped with probability p, and the others multiplied by scale; none without a seed.
struct Dropout {
  const std::int64_t* seed = nullptr;  // (1,) on the device, read there
  float p = 0.0f, scale = 1.0f;
};

// y = norm(x) weight + bias, or, of a norm that adds, s = dropout(x) + residual and y = norm(s) weight + bias.
struct NormForward {
  DType dtype, weight_dtype;  // weight_dtype is dtype or fp32
  std::int64_t rows, n;
  StridedRows<const void*> x;
  const void *weight, *bias;  // (n,) of weight_dtype, or null
  float eps;
  void* y;             // (rows, n)
  float *mean, *rstd;  // (rows,); mean is null for RMSNorm, as bias is
  StridedRows<const void*> residual = {};
  void* s = nullptr;  // (rows, n), aligned to 16 bytes as y is
  Dropout dropout = {};
};

// Gradients of NormForward's y, and of s.
struct NormBackward {
  DType dtype, weight_dtype;
  std::int64_t rows, n;
  StridedRows<const void*> dy, x;  // x is s for a norm that adds
  const void* weight;
  const float *mean, *rstd;
  void* dx;                                  // (rows, n): dresidual for a norm that adds
  float *dweight_partials, *dbias_partials;  // workspace: (the norm's partials, n); null as the gradients are
  void *dweight, *dbias;                     // (n,) of weight_dtype, or null where not wanted
  const void* ds = nullptr;                  // (rows, n), aligned as dx is, or null
  void* dx_of_dropout = nullptr;             // (rows, n), aligned as dx is; null without dropout, where it is dresidual
  Dropout dropout = {};
};

cudaError_t layer_norm_fwd(const NormForward& args, cudaStream_t stream);
cudaError_t rms_norm_fwd(const NormForward& args, cudaStream_t stream);
cudaError_t add_layer_norm_fwd(const NormForward& args, cudaStream_t stream);
cudaError_t add_rms_norm_fwd(const NormForward& args, cudaStream_t stream);

// Also of the norms that add.
cudaError_t layer_norm_bwd(const NormBackward& args, cudaStream_t stream);
cudaError_t rms_norm_bwd(const NormBackward& args, cudaStream_t stream);

// Rows of partial sums that they keep for each gradient of a parameter.
std::int64_t layer_norm_bwd_partials(DType dtype, std::int64_t rows, std::int64_t n);
std::int64_t rms_norm_bwd_partials(DType dtype, std::int64_t rows, std::int64_t n);

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

// Of all rows: the sum of their losses, or the mean by the weights of their targets, plus z_loss times the sum of lse^2,
// or its mean by their number. Ignored rows count for nothing; the mean of none is NaN.
struct LossOutput {
  float z_loss;
  bool is_mean;
  float* loss;    // ()
  float* scales;  // (2,): the derivatives of loss by a row's, and by its lse / lse
};

// Sums of rows that cross_entropy_sum keeps: its workspace is (this, 4) fp32, not looked at if that is 1.
std::int64_t cross_entropy_sums(std::int64_t rows);

// loss, lse: (rows,), of cross_entropy_fwd; n: classes.
cudaError_t cross_entropy_sum(const float* loss, const float* lse, const Labels& labels, float* workspace,
                              const LossOutput& output, std::int64_t rows, std::int64_t n, cudaStream_t stream);

// dlogits: (rows, n); dloss: (rows,), read in place; dlse: (rows,) or null; max, sum: (rows,).
cudaError_t cross_entropy_bwd(DType dtype, const float* dloss, const float* dlse, const void* logits,
                              const Labels& labels, const float* max, const float* sum, void* dlogits,
                              std::int64_t rows, std::int64_t n, const RowStrides& dloss_strides,
                              const RowStrides& logits_strides, cudaStream_t stream);

}  // namespace fusedformer
