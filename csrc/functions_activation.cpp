// The operators of the activations; see functions.h.
#include "tensors.h"

namespace fusedformer::functions {

using namespace tensors;
using fusedformer::Activation;
using fusedformer::StridedRows;

namespace {

Activation gelu_form(bool tanh) { return tanh ? Activation::kGeluTanh : Activation::kGeluErf; }

Activation activation_of(std::int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= static_cast<std::int64_t>(Activation::kRelu), "no activation ", number);
  return static_cast<Activation>(number);
}

// Gate and up, each (..., n): two tensors, or the halves of the one that is given.
struct GateAndUp {
  GateAndUp(const Tensor& x, const std::optional<Tensor>& given_up)
      : shape(x), n(given_up ? shape.n : shape.n / 2), gate_rows(x), up_rows(given_up ? InRows(*given_up) : gate_rows) {
    if (given_up) check_like(*given_up, x, "x and up");
    STD_TORCH_CHECK(given_up || shape.n % 2 == 0, "the last dimension of x must be even, got ", shape.n);
    gate = gate_rows.rows();
    up = up_rows.rows(given_up ? 0 : n);
    sizes = shape.leading;
    sizes.push_back(n);
  }

  Rows shape;
  std::int64_t n;
  InRows gate_rows, up_rows;
  StridedRows<const void*> gate, up;
  std::vector<std::int64_t> sizes;  // of the output
};

}  // namespace

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

}  // namespace fusedformer::functions
