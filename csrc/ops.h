// The launchers: plain C++ over raw pointers, all that the registration files see of the kernels.
//
// Arrays are contiguous and on the current device; a row is the last dimension. `rows` and `n` may be 0. Launchers
// return the error of the launch and do not wait for the kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fusedformer {

enum class DType { kFloat32, kFloat16, kBFloat16 };

// y = softmax(x) over each row; x, y: (rows, n). A row of -inf alone gives 0.
cudaError_t softmax_fwd(DType dtype, const void* x, void* y, std::int64_t rows, std::int64_t n, cudaStream_t stream);

// dx = y (dy - sum(dy y)); dy, y, dx: (rows, n).
cudaError_t softmax_bwd(DType dtype, const void* dy, const void* y, void* dx, std::int64_t rows, std::int64_t n,
                        cudaStream_t stream);

enum class Gelu { kErf, kTanh };

// y = gelu(x); x, y: (n,).
cudaError_t gelu_fwd(DType dtype, Gelu form, const void* x, void* y, std::int64_t n, cudaStream_t stream);

// dx = dy gelu'(x); dy, x, dx: (n,).
cudaError_t gelu_bwd(DType dtype, Gelu form, const void* dy, const void* x, void* dx, std::int64_t n,
                     cudaStream_t stream);

// (rows, n), each row contiguous; `row_stride` elements from one row to the next.
template <class Pointer>
struct StridedRows {
  Pointer data;
  std::int64_t row_stride;
};

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
  StridedRows<const void*> ds = {};          // or null
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

}  // namespace fusedformer
