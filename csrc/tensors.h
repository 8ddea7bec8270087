// What the operators share: checks, outputs, and tensors seen as rows, over PyTorch's stable ABI.
//
// Python defines the schemas and checks arguments in words that a user understands (src/fusedformer/kernels); the
// checks here are what keeps a kernel from reading memory that is not there, whoever calls the operator.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "functions.h"
#include "ops.h"

namespace fusedformer::tensors {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor) {
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
inline Tensor poison(Tensor tensor) {
  return tensor.numel() == 0 ? tensor : torch::stable::fill_(tensor, std::numeric_limits<double>::quiet_NaN());
}

#else

using GetCurrentStream = AOTITorchError (*)(std::int32_t device, void** stream);

// A function of libtorch_cuda. Asked for by name, since a library that links to it would not load where PyTorch has no
// CUDA; and of the loaded library, since PyTorch loads it out of sight of others.
inline GetCurrentStream find_get_current_stream() {
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

inline Tensor poison(Tensor tensor) { return tensor; }

#endif

inline Tensor in_rows(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// In rows, and aligned to 16 bytes, as new tensors are.
inline Tensor in_aligned_rows(const Tensor& tensor) {
  const Tensor rows = in_rows(tensor);
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(rows.const_data_ptr()) % 16 == 0;
  return is_aligned ? rows : torch::stable::clone(rows);
}

inline Tensor new_output(const Tensor& like, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  if (functions::allocate != nullptr) {
    return poison(Tensor(functions::allocate(like.get(), sizes.data(), sizes.size(), static_cast<int>(dtype))));
  }
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t dim = sizes.size(); dim-- > 0; stride *= std::max<std::int64_t>(sizes[dim], 1)) strides[dim] = stride;
  std::int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto type = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle output = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), type, device_type,
                                                  like.get_device_index(), &output));
  return poison(Tensor(output));
}

inline Tensor new_output_like(const Tensor& like) {
  return new_output(like, {like.sizes().begin(), like.sizes().end()}, like.scalar_type());
}

inline void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here: PyTorch is not to find it again
  STD_TORCH_CHECK(false, "kernel launch failed: ", cudaGetErrorString(error));
}

inline void check_sizes(const Tensor& tensor, const Tensor& like, const char* names) {
  const bool same_sizes = std::equal(tensor.sizes().begin(), tensor.sizes().end(), like.sizes().begin(),
                                     like.sizes().end());
  STD_TORCH_CHECK(same_sizes, names, " must have the same shape");
  STD_TORCH_CHECK(tensor.device() == like.device(), names, " must be on the same device");
}

inline void check_like(const Tensor& tensor, const Tensor& like, const char* names) {
  check_sizes(tensor, like, names);
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), names, " must have the same dtype");
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

// weight or bias, contiguous; none stays none.
inline std::optional<Tensor> parameter(const std::optional<Tensor>& tensor, const Tensor& x, std::int64_t n) {
  if (!tensor) return std::nullopt;
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == n, "weight and bias must have shape (", n, ",)");
  STD_TORCH_CHECK(tensor->device() == x.device(), "weight, bias and x must be on the same device");
  return in_rows(*tensor);
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

inline void check_weight_dtype(const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == x.scalar_type() || dtype == ScalarType::Float,
                  "weight and bias must have x's dtype or float32");
}

// The distance from one row to the next, where it is the same everywhere and rows are contiguous.
inline std::optional<std::int64_t> row_stride(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() > 0, "a tensor of rows must have at least one dimension");
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
  StridedRows<const void*> rows(std::int64_t first = 0) const {
    const std::size_t bytes = first * tensor.element_size();
    return {static_cast<const char*>(tensor.const_data_ptr()) + bytes, stride.value_or(tensor.sizes().back())};
  }

  std::optional<std::int64_t> stride;
  Tensor tensor;
};

// Where the elements begin that the first `dims` dimensions of a tensor lead to; none if that takes too many levels.
inline std::optional<RowStrides> leading_strides(const Tensor& tensor, std::int64_t dims) {
  RowStrides out = {};
  std::int64_t rows = 1, extents[RowStrides::kMaxLevels];
  for (std::int64_t dim = dims; dim-- > 0;) {
    const std::int64_t size = tensor.size(dim), stride = tensor.stride(dim), last = out.levels - 1;
    if (size == 1) continue;
    rows *= size;
    if (last >= 0 && stride == extents[last] * out.strides[last]) {
      extents[last] *= size;
    } else {
      if (out.levels == RowStrides::kMaxLevels) return std::nullopt;
      extents[out.levels] = size;
      out.strides[out.levels++] = stride;
    }
  }
  if (out.levels > 1 && rows > std::numeric_limits<unsigned>::max()) return std::nullopt;
  for (int level = 0; level < out.levels; ++level) out.sizes[level] = static_cast<unsigned>(extents[level]);
  out.levels = std::max(out.levels, 1);
  return out;
}

// A tensor of rows as it lies, if it can be read so, else a copy.
struct RowsInPlace {
  explicit RowsInPlace(const Tensor& x) : RowsInPlace(x, x.dim() - 1) {}

  // Rows of all dimensions past the first `dims`, which are contiguous or else copied.
  RowsInPlace(const Tensor& x, std::int64_t dims) : tensor(x) {
    std::optional<RowStrides> found = leading_strides(x, dims);
    if (dims < x.dim() && x.size(dims) > 1 && x.stride(dims) != 1) found.reset();
    if (!found) {
      tensor = torch::stable::contiguous(x);
      found = leading_strides(tensor, dims);
    }
    strides = *found;
  }

  Tensor tensor;
  RowStrides strides;
};

}  // namespace fusedformer::tensors
