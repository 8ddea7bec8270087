// The operators of softmax and the loss over it; see functions.h.
#include "tensors.h"

namespace fusedformer::functions {

using namespace tensors;
using fusedformer::DType;
using fusedformer::Labels;
using fusedformer::RowStrides;

namespace {

// Softmax and its logarithm have launchers alike.
template <class Launcher>
Tensor forward_of_rows(Launcher launcher, const Tensor& x) {
  const Rows shape(x);
  const OnDeviceOf device(x);
  const Tensor x_rows = in_rows(x), y = new_output_like(x);
  check_launch(launcher(dtype_of(x), x_rows.const_data_ptr(), y.mutable_data_ptr(), shape.rows, shape.n,
                        device.stream()));
  return y;
}

template <class Launcher>
Tensor backward_of_rows(Launcher launcher, const Tensor& dy, const Tensor& y) {
  check_like(dy, y, "dy and y");
  const Rows shape(y);
  const OnDeviceOf device(y);
  const Tensor dy_rows = in_rows(dy), y_rows = in_rows(y), dx = new_output_like(y);
  check_launch(launcher(dtype_of(y), dy_rows.const_data_ptr(), y_rows.const_data_ptr(), dx.mutable_data_ptr(),
                        shape.rows, shape.n, device.stream()));
  return dx;
}

// Rows of a matrix, if it is to be causal, else 0.
std::int64_t queries_of(const Tensor& x, bool causal) {
  STD_TORCH_CHECK(!causal || x.dim() >= 2, "causal is of the last two dimensions, and there are ", x.dim());
  return causal ? x.size(x.dim() - 2) : 0;
}

}  // namespace

Tensor softmax_fwd(const Tensor& x) { return forward_of_rows(fusedformer::softmax_fwd, x); }
Tensor softmax_bwd(const Tensor& dy, const Tensor& y) { return backward_of_rows(fusedformer::softmax_bwd, dy, y); }
Tensor log_softmax_fwd(const Tensor& x) { return forward_of_rows(fusedformer::log_softmax_fwd, x); }
Tensor log_softmax_bwd(const Tensor& dy, const Tensor& y) {
  return backward_of_rows(fusedformer::log_softmax_bwd, dy, y);
}

Tensor masked_softmax_fwd(const Tensor& x, const std::optional<Tensor>& mask, bool causal, double scale) {
  const Rows shape(x);
  const OnDeviceOf device(x);
  const RowsInPlace x_rows(x);
  const std::optional<RowsInPlace> mask_rows = mask ? std::optional<RowsInPlace>(*mask) : std::nullopt;
  std::optional<DType> additive;
  if (mask) {
    check_sizes(*mask, x, "mask and x");
    if (mask->scalar_type() != ScalarType::Bool) additive = dtype_of(*mask);
  }
  const Tensor y = new_output_like(x);
  check_launch(fusedformer::masked_softmax_fwd(
      dtype_of(x), additive, x_rows.tensor.const_data_ptr(), mask ? mask_rows->tensor.const_data_ptr() : nullptr,
      y.mutable_data_ptr(), shape.rows, shape.n, queries_of(x, causal), x_rows.strides,
      mask ? mask_rows->strides : RowStrides{}, static_cast<float>(scale), device.stream()));
  return y;
}

Tensor masked_softmax_bwd(const Tensor& dy, const Tensor& y, bool causal, double scale) {
  const auto launcher = [&](DType dtype, const void* dy_rows, const void* y_rows, void* dx, std::int64_t rows,
                            std::int64_t n, cudaStream_t stream) {
    return fusedformer::masked_softmax_bwd(dtype, dy_rows, y_rows, dx, rows, n, queries_of(y, causal),
                                           static_cast<float>(scale), stream);
  };
  return backward_of_rows(launcher, dy, y);
}

namespace {

// Class weights and targets of the rows of logits, contiguous, and what of them the kernels take.
struct TargetRows {
  TargetRows(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, std::int64_t ignore_index,
             double smoothing)
      : shape(logits), target_rows(in_rows(target)), labels{nullptr, nullptr, nullptr, ignore_index, float(smoothing)} {
    const auto sizes = target.sizes();
    const bool is_like = std::equal(sizes.begin(), sizes.end(), shape.leading.begin(), shape.leading.end());
    STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long && is_like,
                    "target must be int64, one number for each row of logits");
    STD_TORCH_CHECK(target.device() == logits.device(), "target and logits must be on the same device");
    STD_TORCH_CHECK(shape.n > 0 && shape.n <= kMaxColumns, "logits must have 1 to ", kMaxColumns, " columns");
    labels.target = target_rows.const_data_ptr<std::int64_t>();
    if (!weight) return;
    STD_TORCH_CHECK(weight->scalar_type() == ScalarType::Float && weight->dim() == 1 && weight->size(0) == shape.n,
                    "weight must be float32, one number for each column of logits");
    STD_TORCH_CHECK(weight->device() == logits.device(), "weight and logits must be on the same device");
    weight_row = in_rows(*weight);
    weight_sum = torch::stable::sum(*weight_row);
    labels.weight = weight_row->const_data_ptr<float>();
    labels.weight_sum = weight_sum->const_data_ptr<float>();
  }

  static constexpr std::int64_t kMaxColumns = std::int64_t{1} << 28;  // that the grid of the backward pass reaches

  Rows shape;
  Tensor target_rows;
  std::optional<Tensor> weight_row, weight_sum;
  Labels labels;
};

// Numbers of each row.
struct RowLosses {
  RowLosses(const Tensor& logits, const TargetRows& in, cudaStream_t stream)
      : loss(new_output(logits, in.shape.leading, ScalarType::Float)),
        lse(new_output(logits, in.shape.leading, ScalarType::Float)),
        max(new_output(logits, in.shape.leading, ScalarType::Float)),
        sum(new_output(logits, in.shape.leading, ScalarType::Float)) {
    const RowsInPlace x(logits);
    check_launch(fusedformer::cross_entropy_fwd(
        dtype_of(logits), x.tensor.const_data_ptr(), in.labels, loss.mutable_data_ptr<float>(),
        lse.mutable_data_ptr<float>(), max.mutable_data_ptr<float>(), sum.mutable_data_ptr<float>(), in.shape.rows,
        in.shape.n, x.strides, stream));
  }

  Tensor loss, lse, max, sum;
};

void check_row_numbers(const Tensor& tensor, const Tensor& logits, const Rows& shape) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == shape.rows,
                  "dloss, dlse, max and sum must be float32, one number for each row of logits");
  STD_TORCH_CHECK(tensor.device() == logits.device(), "dloss, dlse, max, sum and logits must be on the same device");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_fwd(const Tensor& logits, const Tensor& target,
                                                             const std::optional<Tensor>& weight,
                                                             std::int64_t ignore_index, double smoothing) {
  const OnDeviceOf device(logits);
  const RowLosses rows(logits, TargetRows(logits, target, weight, ignore_index, smoothing), device.stream());
  return {rows.loss, rows.lse, rows.max, rows.sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy_reduced_fwd(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, std::int64_t ignore_index,
    double smoothing, double z_loss, bool mean) {
  const OnDeviceOf device(logits);
  const TargetRows in(logits, target, weight, ignore_index, smoothing);
  const RowLosses rows(logits, in, device.stream());
  const Tensor loss = new_output(logits, {}, ScalarType::Float), scales = new_output(logits, {2}, ScalarType::Float);
  const std::int64_t sums = fusedformer::cross_entropy_sums(in.shape.rows);
  std::optional<Tensor> workspace;
  if (sums > 1) workspace = new_output(logits, {sums, 4}, ScalarType::Float);
  check_launch(fusedformer::cross_entropy_sum(
      rows.loss.const_data_ptr<float>(), rows.lse.const_data_ptr<float>(), in.labels,
      workspace ? workspace->mutable_data_ptr<float>() : nullptr,
      {static_cast<float>(z_loss), mean, loss.mutable_data_ptr<float>(), scales.mutable_data_ptr<float>()},
      in.shape.rows, in.shape.n, device.stream()));
  return {loss, rows.lse, rows.max, rows.sum, scales};
}

Tensor cross_entropy_bwd(const Tensor& dloss, const std::optional<Tensor>& dlse, const Tensor& logits,
                         const Tensor& target, const std::optional<Tensor>& weight, const Tensor& max,
                         const Tensor& sum, std::int64_t ignore_index, double smoothing) {
  const OnDeviceOf device(logits);
  const TargetRows in(logits, target, weight, ignore_index, smoothing);
  for (const Tensor* tensor : {&dloss, &max, &sum}) check_row_numbers(*tensor, logits, in.shape);
  if (dlse) check_row_numbers(*dlse, logits, in.shape);
  const RowsInPlace x(logits), dloss_rows(dloss, dloss.dim());
  const std::optional<Tensor> dlse_rows = dlse ? std::optional(in_rows(*dlse)) : std::nullopt;
  const Tensor max_rows = in_rows(max), sum_rows = in_rows(sum), dlogits = new_output_like(logits);
  check_launch(fusedformer::cross_entropy_bwd(
      dtype_of(logits), dloss_rows.tensor.const_data_ptr<float>(),
      dlse_rows ? dlse_rows->const_data_ptr<float>() : nullptr, x.tensor.const_data_ptr(), in.labels,
      max_rows.const_data_ptr<float>(), sum_rows.const_data_ptr<float>(), dlogits.mutable_data_ptr(), in.shape.rows,
      in.shape.n, dloss_rows.strides, x.strides, device.stream()));
  return dlogits;
}

}  // namespace fusedformer::functions
