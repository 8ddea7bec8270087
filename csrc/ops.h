// The launchers: plain C++ over raw pointers, all that register.cpp sees of the kernels.
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

}  // namespace fusedformer
