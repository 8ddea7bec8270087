// The operators, registered with PyTorch through its stable ABI: the only file that sees PyTorch.
//
// Python defines the schemas and checks arguments in words that a user understands (src/fusedformer/kernels); the
// checks here are what keeps a kernel from reading memory that is not there, whoever calls the operator.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
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
#endif

namespace {

using fusedformer::Activation;
using fusedformer::DType;
using fusedformer::StridedRows;
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

using GetCurrentStream = AOTITorchError (*)(std::int32_t device, void** stream);

// A function of libtorch_cuda. Asked for by name, since a library that links to it would not load where PyTorch has no
// CUDA; and of the loaded library, since PyTorch loads it out of sight of others.
GetCurrentStream find_get_current_stream() {
  void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  STD_TORCH_CHECK(torch_cuda != nullptr, "libtorch_cuda.so is not loaded: this PyTorch has no CUDA");
  void* const function = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
  STD_TORCH_CHECK(function != nullptr, "libtorch_cuda.so has no aoti_torch_get_current_cuda_stream");
  return reinterpret_cast<GetCurrentStream>(function);
}

// Makes the tensor's device current while it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}

  cudaStream_t stream() const {
    static const GetCurrentStream get_current_stream = find_get_current_stream();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get_current_stream(device_, &stream));
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

void check_like(const Tensor& tensor, const Tensor& like, const char* names) {
  const bool same_sizes = std::equal(tensor.sizes().begin(), tensor.sizes().end(), like.sizes().begin(),
                                     like.sizes().end());
  STD_TORCH_CHECK(same_sizes, names, " must have the same shape");
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

Activation gelu_form(bool tanh) { return tanh ? Activation::kGeluTanh : Activation::kGeluErf; }

Tensor gelu_fwd(const Tensor& x, bool tanh) {
  const OnDeviceOf device(x);
  const Tensor x_flat = in_rows(x), y = new_output_like(x);
  check_launch(fusedformer::gelu_fwd(dtype_of(x), gelu_form(tanh), x_flat.const_data_ptr(), y.mutable_data_ptr(),
                                     x.numel(), device.stream()));
  return y;
}

Tensor gelu_bwd(const Tensor& dy, const Tensor& x, bool tanh) {
  check_like(dy, x, "dy and x");
  const OnDeviceOf device(x);
  const Tensor dy_flat = in_rows(dy), x_flat = in_rows(x), dx = new_output_like(x);
  check_launch(fusedformer::gelu_bwd(dtype_of(x), gelu_form(tanh), dy_flat.const_data_ptr(), x_flat.const_data_ptr(),
                                     dx.mutable_data_ptr(), x.numel(), device.stream()));
  return dx;
}

// weight or bias, contiguous; none stays none.
std::optional<Tensor> parameter(const std::optional<Tensor>& tensor, const Tensor& x, std::int64_t n) {
  if (!tensor) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == n, "weight and bias must have shape (", n, ",)");
  STD_TORCH_CHECK(tensor->device() == x.device(), "weight, bias and x must be on the same device");
  return in_rows(*tensor);
}

const void* data_or_null(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

void check_weight_dtype(const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == x.scalar_type() || dtype == ScalarType::Float,
                  "weight and bias must have x's dtype or float32");
}

Activation activation_of(std::int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= static_cast<std::int64_t>(Activation::kRelu), "no activation ", number);
  return static_cast<Activation>(number);
}

Tensor bias_activation_fwd(const Tensor& x, const Tensor& bias, std::int64_t activation) {
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor x_rows = in_rows(x), bias_row = *parameter(bias, x, shape.n), y = new_output_like(x);
  check_weight_dtype(x, bias.scalar_type());
  check_launch(fusedformer::bias_activation_fwd(dtype_of(x), dtype_of(bias), activation_of(activation),
                                                x_rows.const_data_ptr(), bias_row.const_data_ptr(),
                                                y.mutable_data_ptr(), shape.rows, shape.n, device.stream()));
  return y;
}

std::tuple<Tensor, Tensor> bias_activation_bwd(const Tensor& dy, const Tensor& x, const Tensor& bias,
                                               std::int64_t activation, bool needs_dbias) {
  check_like(dy, x, "dy and x");
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor dy_rows = in_rows(dy), x_rows = in_rows(x), bias_row = *parameter(bias, x, shape.n);
  check_weight_dtype(x, bias.scalar_type());
  const std::int64_t partials = fusedformer::bias_activation_bwd_partials(shape.rows, shape.n);
  const Tensor dx = new_output_like(x), dbias = new_output(x, {needs_dbias ? shape.n : 0}, bias.scalar_type());
  const Tensor workspace = new_output(x, {needs_dbias ? partials : 0, shape.n}, ScalarType::Float);
  check_launch(fusedformer::bias_activation_bwd(
      dtype_of(x), dtype_of(bias), activation_of(activation), dy_rows.const_data_ptr(), x_rows.const_data_ptr(),
      bias_row.const_data_ptr(), dx.mutable_data_ptr(), needs_dbias ? workspace.mutable_data_ptr<float>() : nullptr,
      needs_dbias ? dbias.mutable_data_ptr() : nullptr, shape.rows, shape.n, device.stream()));
  return {dx, dbias};
}

// The distance from one row to the next, where it is the same everywhere and rows are contiguous.
std::optional<std::int64_t> row_stride(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const std::size_t last = sizes.size() - 1;
  if (sizes[last] > 1 && strides[last] != 1) return std::nullopt;
  std::int64_t rows = 1, stride = sizes[last];
  for (std::size_t i = last; i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (rows == 1) stride = strides[i];
    if (strides[i] != rows * stride) return std::nullopt;
    rows *= sizes[i];
  }
  return stride;
}

// A tensor as it lies if that is in rows, else a copy.
struct InRows {
  explicit InRows(const Tensor& x) : stride(row_stride(x)), tensor(stride ? x : torch::stable::contiguous(x)) {}

  // From element `first` of each row on.
  StridedRows<const void*> from(std::int64_t first) const {
    const std::size_t bytes = first * tensor.element_size();
    return {static_cast<const char*>(tensor.const_data_ptr()) + bytes, stride.value_or(tensor.sizes().back())};
  }

  std::optional<std::int64_t> stride;
  Tensor tensor;
};

// Gate and up, each (..., n): two tensors, or the halves of the one that is given.
struct GateAndUp {
  GateAndUp(const Tensor& x, const std::optional<Tensor>& given_up)
      : shape(x), n(given_up ? shape.n : shape.n / 2), gate_rows(x), up_rows(given_up ? InRows(*given_up) : gate_rows) {
    if (given_up) check_like(*given_up, x, "x and up");
    STD_TORCH_CHECK(given_up || shape.n % 2 == 0, "the last dimension of x must be even, got ", shape.n);
    gate = gate_rows.from(0);
    up = up_rows.from(given_up ? 0 : n);
    sizes = shape.leading;
    sizes.push_back(n);
  }

  Rows shape;
  std::int64_t n;
  InRows gate_rows, up_rows;
  StridedRows<const void*> gate, up;
  std::vector<std::int64_t> sizes;  // of the output
};

Tensor glu_fwd(const Tensor& x, const std::optional<Tensor>& up, std::int64_t activation) {
  const OnDeviceOf device(x);
  const GateAndUp in(x, up);
  const Tensor y = new_output(x, in.sizes, x.scalar_type());
  check_launch(fusedformer::glu_fwd(dtype_of(x), activation_of(activation), in.gate, in.up, y.mutable_data_ptr(),
                                    in.shape.rows, in.n, device.stream()));
  return y;
}

std::tuple<Tensor, Tensor> glu_bwd(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& up,
                                   std::int64_t activation) {
  const OnDeviceOf device(x);
  const GateAndUp in(x, up);
  STD_TORCH_CHECK(std::equal(dy.sizes().begin(), dy.sizes().end(), in.sizes.begin(), in.sizes.end()),
                  "dy must have the output's shape");
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type() && dy.device() == x.device(),
                  "dy and x must have the same dtype and device");
  const Tensor dy_rows = in_rows(dy), dx = new_output_like(x);
  const Tensor dup = up ? new_output_like(x) : new_output(x, {0}, x.scalar_type());
  void* const dup_data = up ? dup.mutable_data_ptr()
                            : static_cast<char*>(dx.mutable_data_ptr()) + in.n * dx.element_size();
  check_launch(fusedformer::glu_bwd(dtype_of(x), activation_of(activation), dy_rows.const_data_ptr(), in.gate, in.up,
                                    {dx.mutable_data_ptr(), in.shape.n}, {dup_data, in.shape.n}, in.shape.rows, in.n,
                                    device.stream()));
  return {dx, dup};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const std::optional<Tensor>& weight,
                                                  const std::optional<Tensor>& bias, double eps) {
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor x_rows = in_rows(x);
  const std::optional<Tensor> weight_row = parameter(weight, x, shape.n), bias_row = parameter(bias, x, shape.n);
  STD_TORCH_CHECK(!weight || !bias || weight->scalar_type() == bias->scalar_type(),
                  "weight and bias must have the same dtype");
  const Tensor& typed = weight_row ? *weight_row : bias_row ? *bias_row : x;
  check_weight_dtype(x, typed.scalar_type());
  const Tensor y = new_output_like(x), mean = new_output(x, shape.leading, ScalarType::Float);
  const Tensor rstd = new_output(x, shape.leading, ScalarType::Float);
  check_launch(fusedformer::layer_norm_fwd(
      dtype_of(x), dtype_of(typed), x_rows.const_data_ptr(), data_or_null(weight_row), data_or_null(bias_row),
      static_cast<float>(eps), y.mutable_data_ptr(), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>(),
      shape.rows, shape.n, device.stream()));
  return {y, mean, rstd};
}

// Mean or rstd, one number a row.
Tensor row_statistic(const Tensor& tensor, const Tensor& x, const Rows& shape) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == shape.rows,
                  "mean and rstd must be float32, one number for each row of x");
  STD_TORCH_CHECK(tensor.device() == x.device(), "mean, rstd and x must be on the same device");
  return in_rows(tensor);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_bwd(const Tensor& dy, const Tensor& x,
                                                  const std::optional<Tensor>& weight, const Tensor& mean,
                                                  const Tensor& rstd, bool needs_dweight, bool needs_dbias) {
  check_like(dy, x, "dy and x");
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor dy_rows = in_rows(dy), x_rows = in_rows(x);
  const Tensor row_means = row_statistic(mean, x, shape), row_rstds = row_statistic(rstd, x, shape);
  const std::optional<Tensor> weight_row = parameter(weight, x, shape.n);
  const ScalarType weight_dtype = weight ? weight->scalar_type() : x.scalar_type();
  check_weight_dtype(x, weight_dtype);

  const Tensor dx = new_output_like(x);
  check_launch(fusedformer::layer_norm_bwd_input(
      dtype_of(x), dtype_of(weight_row ? *weight_row : x), dy_rows.const_data_ptr(), x_rows.const_data_ptr(),
      data_or_null(weight_row), row_means.const_data_ptr<float>(), row_rstds.const_data_ptr<float>(),
      dx.mutable_data_ptr(), shape.rows, shape.n, device.stream()));

  const std::int64_t partials = fusedformer::layer_norm_bwd_partials(shape.rows);
  const auto gradient = [&](bool wanted) { return new_output(x, {wanted ? shape.n : 0}, weight_dtype); };
  const auto workspace = [&](bool wanted) {
    return new_output(x, {wanted ? partials : 0, shape.n}, ScalarType::Float);
  };
  const Tensor dweight = gradient(needs_dweight), dweight_partials = workspace(needs_dweight);
  const Tensor dbias = gradient(needs_dbias), dbias_partials = workspace(needs_dbias);
  check_launch(fusedformer::layer_norm_bwd_weight(
      dtype_of(x), dtype_of(dweight), dy_rows.const_data_ptr(), x_rows.const_data_ptr(),
      row_means.const_data_ptr<float>(), row_rstds.const_data_ptr<float>(),
      needs_dweight ? dweight_partials.mutable_data_ptr<float>() : nullptr,
      needs_dbias ? dbias_partials.mutable_data_ptr<float>() : nullptr,
      needs_dweight ? dweight.mutable_data_ptr() : nullptr, needs_dbias ? dbias.mutable_data_ptr() : nullptr,
      shape.rows, shape.n, device.stream()));
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FUSEDFORMER_NAMESPACE, FUSEDFORMER_DISPATCH_KEY, library) {
  library.impl("softmax_fwd", TORCH_BOX(&softmax_fwd));
  library.impl("softmax_bwd", TORCH_BOX(&softmax_bwd));
  library.impl("gelu_fwd", TORCH_BOX(&gelu_fwd));
  library.impl("gelu_bwd", TORCH_BOX(&gelu_bwd));
  library.impl("bias_activation_fwd", TORCH_BOX(&bias_activation_fwd));
  library.impl("bias_activation_bwd", TORCH_BOX(&bias_activation_bwd));
  library.impl("glu_fwd", TORCH_BOX(&glu_fwd));
  library.impl("glu_bwd", TORCH_BOX(&glu_bwd));
  library.impl("layer_norm_fwd", TORCH_BOX(&layer_norm_fwd));
  library.impl("layer_norm_bwd", TORCH_BOX(&layer_norm_bwd));
}
