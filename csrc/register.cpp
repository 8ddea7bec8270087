// GELU and the norms, registered with PyTorch.
#include "register.h"

namespace {

using namespace fusedformer::registration;
using fusedformer::Gelu;

Gelu gelu_form(bool tanh) { return tanh ? Gelu::kTanh : Gelu::kErf; }

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

void check_weight_dtype(const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == x.scalar_type() || dtype == ScalarType::Float,
                  "weight and bias must have x's dtype or float32");
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
  library.impl("gelu_fwd", TORCH_BOX(&gelu_fwd));
  library.impl("gelu_bwd", TORCH_BOX(&gelu_bwd));
  library.impl("layer_norm_fwd", TORCH_BOX(&layer_norm_fwd));
  library.impl("layer_norm_bwd", TORCH_BOX(&layer_norm_bwd));
}
