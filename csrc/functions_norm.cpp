// The operators of the norms; see functions.h.
#include "tensors.h"

namespace fusedformer::functions {

using namespace tensors;
using fusedformer::Dropout;
using fusedformer::NormBackward;
using fusedformer::NormForward;

namespace {

using LaunchForward = cudaError_t(const NormForward&, cudaStream_t);
using LaunchBackward = cudaError_t(const NormBackward&, cudaStream_t);
using Partials = std::int64_t(fusedformer::DType, std::int64_t rows, std::int64_t n);

float* floats_or_null(const Optional& tensor) { return tensor ? tensor->mutable_data_ptr<float>() : nullptr; }

// Of a seed on x's device, which the kernel reads.
Dropout dropout_of(const Optional& seed, double p, const Tensor& x) {
  if (!seed) return {};
  STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1 && seed->device() == x.device(),
                  "seed must be int64 of one element, on x's device");
  STD_TORCH_CHECK(p >= 0 && p < 1, "dropout_p must be at least 0 and less than 1, got ", p);
  return {seed->const_data_ptr<std::int64_t>(), static_cast<float>(p), static_cast<float>(1 / (1 - p))};
}

// One norm's forward: its inputs as the kernel takes them, and its outputs.
struct Forward {
  Forward(const Tensor& x_given, const Optional& weight_given, const Optional& bias_given, bool has_mean)
      : device(x_given),
        shape(x_given),
        x(x_given),
        weight(parameter(weight_given, x_given, shape.n)),
        bias(parameter(bias_given, x_given, shape.n)),
        y(new_output_like(x_given)),
        mean(has_mean ? Optional(new_output(x_given, shape.leading, ScalarType::Float)) : std::nullopt),
        rstd(new_output(x_given, shape.leading, ScalarType::Float)) {
    STD_TORCH_CHECK(!bias || (weight && weight->scalar_type() == bias->scalar_type()),
                    "a bias goes with a weight of the same dtype");
    const Tensor& typed = weight ? *weight : bias ? *bias : x_given;
    check_weight_dtype(x_given, typed.scalar_type());
    args = {dtype_of(x_given),
            dtype_of(typed),
            shape.rows,
            shape.n,
            x.rows(),
            data_or_null(weight),
            data_or_null(bias),
            0.0f,
            y.mutable_data_ptr(),
            floats_or_null(mean),
            rstd.mutable_data_ptr<float>()};
  }

  void run(LaunchForward* launch, double eps) {
    STD_TORCH_CHECK(eps >= 0 && eps < std::numeric_limits<double>::infinity(), "eps must be finite and >= 0, got ", eps);
    args.eps = static_cast<float>(eps);
    check_launch(launch(args, device.stream()));
  }

  OnDeviceOf device;
  Rows shape;
  InRows x;
  Optional weight, bias;
  Tensor y;
  Optional mean;
  Tensor rstd;
  NormForward args;
};

// Runs a norm that adds; gives s.
Tensor run_adding(Forward& forward, LaunchForward* launch, const Tensor& x, const Tensor& residual,
                  const Optional& seed, double eps, double dropout_p) {
  check_like(residual, x, "residual and x");
  const InRows residual_rows(residual);
  const Tensor s = new_output_like(x);
  forward.args.residual = residual_rows.rows();
  forward.args.s = s.mutable_data_ptr();
  forward.args.dropout = dropout_of(seed, dropout_p, x);
  forward.run(launch, eps);
  return s;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const Optional& weight, const Optional& bias,
                                                  double eps) {
  Forward forward(x, weight, bias, true);
  forward.run(fusedformer::layer_norm_fwd, eps);
  return {forward.y, *forward.mean, forward.rstd};
}

std::tuple<Tensor, Tensor> rms_norm_fwd(const Tensor& x, const Optional& weight, double eps) {
  Forward forward(x, weight, std::nullopt, false);
  forward.run(fusedformer::rms_norm_fwd, eps);
  return {forward.y, forward.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(const Tensor& x, const Tensor& residual,
                                                              const Optional& weight, const Optional& bias,
                                                              const Optional& seed, double eps, double dropout_p) {
  Forward forward(x, weight, bias, true);
  const Tensor s = run_adding(forward, fusedformer::add_layer_norm_fwd, x, residual, seed, eps, dropout_p);
  return {forward.y, s, *forward.mean, forward.rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_fwd(const Tensor& x, const Tensor& residual, const Optional& weight,
                                                    const Optional& seed, double eps, double dropout_p) {
  Forward forward(x, weight, std::nullopt, false);
  const Tensor s = run_adding(forward, fusedformer::add_rms_norm_fwd, x, residual, seed, eps, dropout_p);
  return {forward.y, s, forward.rstd};
}

namespace {

// Mean or rstd, one number a row.
Tensor row_statistic(const Tensor& tensor, const Tensor& x, const Rows& shape) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == shape.rows,
                  "mean and rstd must be float32, one number for each row of x");
  STD_TORCH_CHECK(tensor.device() == x.device(), "mean, rstd and x must be on the same device");
  return in_rows(tensor);
}

// One norm's backward: its inputs as the kernel takes them, its workspace and its outputs. x is what was normalised.
struct Backward {
  Backward(Partials* partials_of, const Tensor& dy_given, const Tensor& x_given, const Optional& weight_given,
           const Optional& mean_given, const Tensor& rstd_given, bool needs_dweight, bool needs_dbias)
      : device(x_given),
        shape(x_given),
        dy(dy_given),
        x(x_given),
        weight(parameter(weight_given, x_given, shape.n)),
        mean(mean_given ? Optional(row_statistic(*mean_given, x_given, shape)) : std::nullopt),
        rstd(row_statistic(rstd_given, x_given, shape)),
        parameter_dtype(weight ? weight->scalar_type() : x_given.scalar_type()),
        dx(new_output_like(x_given)),
        dweight(gradient(needs_dweight)),
        dbias(gradient(needs_dbias)),
        partials(partials_of(dtype_of(x_given), shape.rows, shape.n)),
        dweight_partials(workspace(needs_dweight)),
        dbias_partials(workspace(needs_dbias)) {
    check_like(dy_given, x_given, "dy and x");
    check_weight_dtype(x_given, parameter_dtype);
    args = {dtype_of(x_given),
            dtype_of(dweight),
            shape.rows,
            shape.n,
            dy.rows(),
            x.rows(),
            data_or_null(weight),
            mean ? mean->const_data_ptr<float>() : nullptr,
            rstd.const_data_ptr<float>(),
            dx.mutable_data_ptr(),
            floats_or_null(dweight_partials),
            floats_or_null(dbias_partials),
            needs_dweight ? dweight.mutable_data_ptr() : nullptr,
            needs_dbias ? dbias.mutable_data_ptr() : nullptr};
  }

  Tensor gradient(bool wanted) const { return new_output(x.tensor, {wanted ? shape.n : 0}, parameter_dtype); }
  Optional workspace(bool wanted) const {
    return wanted ? Optional(new_output(x.tensor, {partials, shape.n}, ScalarType::Float)) : std::nullopt;
  }

  void run(LaunchBackward* launch) { check_launch(launch(args, device.stream())); }

  OnDeviceOf device;
  Rows shape;
  InRows dy, x;
  Optional weight, mean;
  Tensor rstd;
  ScalarType parameter_dtype;
  Tensor dx, dweight, dbias;
  std::int64_t partials;
  Optional dweight_partials, dbias_partials;
  NormBackward args;
};

// Runs the backward of a norm that adds; gives dx, which is empty without dropout, where it is dresidual.
Tensor run_adding(Backward& backward, LaunchBackward* launch, const Optional& ds, const Tensor& s,
                  const Optional& seed, double dropout_p) {
  if (ds) check_like(*ds, s, "ds and s");
  const Optional ds_rows = ds ? Optional(in_aligned_rows(*ds)) : std::nullopt;
  const Tensor dx = seed ? new_output_like(s) : new_output(s, {0}, s.scalar_type());
  backward.args.ds = data_or_null(ds_rows);
  if (seed) backward.args.dx_of_dropout = dx.mutable_data_ptr();
  backward.args.dropout = dropout_of(seed, dropout_p, s);
  backward.run(launch);
  return dx;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm_bwd(const Tensor& dy, const Tensor& x, const Optional& weight,
                                                  const Tensor& mean, const Tensor& rstd, bool needs_dweight,
                                                  bool needs_dbias) {
  Backward backward(fusedformer::layer_norm_bwd_partials, dy, x, weight, mean, rstd, needs_dweight, needs_dbias);
  backward.run(fusedformer::layer_norm_bwd);
  return {backward.dx, backward.dweight, backward.dbias};
}

std::tuple<Tensor, Tensor> rms_norm_bwd(const Tensor& dy, const Tensor& x, const Optional& weight, const Tensor& rstd,
                                        bool needs_dweight) {
  Backward backward(fusedformer::rms_norm_bwd_partials, dy, x, weight, std::nullopt, rstd, needs_dweight, false);
  backward.run(fusedformer::rms_norm_bwd);
  return {backward.dx, backward.dweight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_bwd(const Tensor& dy, const Optional& ds, const Tensor& s,
                                                              const Optional& weight, const Tensor& mean,
                                                              const Tensor& rstd, const Optional& seed,
                                                              double dropout_p, bool needs_dweight,
                                                              bool needs_dbias) {
  Backward backward(fusedformer::layer_norm_bwd_partials, dy, s, weight, mean, rstd, needs_dweight, needs_dbias);
  const Tensor dx = run_adding(backward, fusedformer::layer_norm_bwd, ds, s, seed, dropout_p);
  return {dx, backward.dx, backward.dweight, backward.dbias};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_bwd(const Tensor& dy, const Optional& ds, const Tensor& s,
                                                    const Optional& weight, const Tensor& rstd, const Optional& seed,
                                                    double dropout_p, bool needs_dweight) {
  Backward backward(fusedformer::rms_norm_bwd_partials, dy, s, weight, std::nullopt, rstd, needs_dweight, false);
  const Tensor dx = run_adding(backward, fusedformer::rms_norm_bwd, ds, s, seed, dropout_p);
  return {dx, backward.dx, backward.dweight};
}

}  // namespace fusedformer::functions
