// The operators, registered with PyTorch through its stable ABI: the only file that sees PyTorch.
//
// Python defines the schemas and checks arguments in words that a user understands (src/fusedformer/kernels); the
// checks here are what keeps a kernel from reading memory that is not there, whoever calls the operator.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "ops.h"

#ifdef FUSEDFORMER_EMULATED
#define FUSEDFORMER_NAMESPACE fusedformer_emulated
#define FUSEDFORMER_DISPATCH_KEY CPU
#else
#define FUSEDFORMER_NAMESPACE fusedformer
#define FUSEDFORMER_DISPATCH_KEY CUDA
// In libtorch_cuda alone. Weak, so that the extension loads where PyTorch has no CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device, void** stream);
#endif

namespace {

using fusedformer::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16, got ", toString(tensor.scalar_type()));
  }
}

#ifdef FUSEDFORMER_EMULATED

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

// NaN, so that an element which no thread writes shows.
Tensor poison(Tensor tensor) { return torch::stable::fill_(tensor, std::numeric_limits<double>::quiet_NaN()); }

#else

// Makes the tensor's device current while it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceIndex device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

Tensor poison(Tensor tensor) { return tensor; }

#endif

Tensor in_rows(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor new_output(const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  return poison(torch::stable::new_empty(like, sizes, dtype));
}

Tensor new_output_like(const Tensor& like) {
  return new_output(like, {like.sizes().begin(), like.sizes().end()}, like.scalar_type());
}

void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here: PyTorch is not to find it again
  STD_TORCH_CHECK(false, "kernel launch failed: ", cudaGetErrorString(error));
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

void check_like(const Tensor& tensor, const Tensor& like, const char* names) {
  STD_TORCH_CHECK(same_sizes(tensor, like), names, " must have the same shape");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), names, " must have the same dtype");
  STD_TORCH_CHECK(tensor.device() == like.device(), names, " must be on the same device");
}

// The last dimension is a row.
struct Rows {
  explicit Rows(const Tensor& x) {
    STD_TORCH_CHECK(x.dim() > 0, "x must have at least one dimension");
    leading.assign(x.sizes().begin(), x.sizes().end() - 1);
    n = x.size(x.dim() - 1);
    for (const std::int64_t size : leading) rows *= size;
  }

  std::vector<std::int64_t> leading;
  std::int64_t rows = 1, n = 0;
};

Tensor softmax_fwd(const Tensor& x) {
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor x_rows = in_rows(x), y = new_output_like(x);
  check_launch(fusedformer::softmax_fwd(dtype_of(x), x_rows.const_data_ptr(), y.mutable_data_ptr(), shape.rows,
                                        shape.n, device.stream()));
  return y;
}

Tensor softmax_bwd(const Tensor& dy, const Tensor& y) {
  check_like(dy, y, "dy and y");
  const Rows shape(y);
  const OnDeviceOf device(y);
  const Tensor dy_rows = in_rows(dy), y_rows = in_rows(y), dx = new_output_like(y);
  check_launch(fusedformer::softmax_bwd(dtype_of(y), dy_rows.const_data_ptr(), y_rows.const_data_ptr(),
                                        dx.mutable_data_ptr(), shape.rows, shape.n, device.stream()));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDFORMER_NAMESPACE, FUSEDFORMER_DISPATCH_KEY, library) {
  library.impl("softmax_fwd", TORCH_BOX(&softmax_fwd));
  library.impl("softmax_bwd", TORCH_BOX(&softmax_bwd));
}
