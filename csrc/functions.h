// The operators, for the dispatcher (register.cpp) and for who calls them past it (eager.cpp).
// Defined in functions_*.cpp; what they take and give is in the schemas of src/fusedformer/kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>

namespace fusedformer::functions {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

Tensor softmax_fwd(const Tensor& x);
Tensor softmax_bwd(const Tensor& dy, const Tensor& y);
Tensor log_softmax_fwd(const Tensor& x);
Tensor log_softmax_bwd(const Tensor& dy, const Tensor& y);
Tensor masked_softmax_fwd(const Tensor& x, const Optional& mask, bool causal, double scale);
Tensor masked_softmax_bwd(const Tensor& dy, const Tensor& y, bool causal, double scale);

Tensor gelu_fwd(const Tensor& x, bool tanh);
Tensor gelu_bwd(const Tensor& dy, const Tensor& x, bool tanh);
Tensor bias_activation_fwd(const Tensor& x, const Tensor& bias, std::int64_t activation);
std::tuple<Tensor, Tensor> bias_activation_bwd(const Tensor& dy, const Tensor& x, const Tensor& bias,
                                               std::int64_t activation, bool needs_dbias);
Tensor glu_fwd(const Tensor& x, const Optional& up, std::int64_t activation);
std::tuple<Tensor, Tensor> glu_bwd(const Tensor& dy, const Tensor& x, const Optional& up, std::int64_t activation);

std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const Optional& weight, const Optional& bias,
                                                  double eps);
std::tuple<Tensor, Tensor, Tensor> layer_norm_bwd(const Tensor& dy, const Tensor& x, const Optional& weight,
                                                  const Tensor& mean, const Tensor& rstd, bool needs_dweight,
                                                  bool needs_dbias);
std::tuple<Tensor, Tensor> rms_norm_fwd(const Tensor& x, const Optional& weight, double eps);
std::tuple<Tensor, Tensor> rms_norm_bwd(const Tensor& dy, const Tensor& x, const Optional& weight, const Tensor& rstd,
                                        bool needs_dweight);
std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(const Tensor& x, const Tensor& residual,
                                                              const Optional& weight, const Optional& bias,
                                                              const Optional& seed, double eps, double dropout_p);
std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_bwd(const Tensor& dy, const Optional& ds, const Tensor& s,
                                                              const Optional& weight, const Tensor& mean,
                                                              const Tensor& rstd, const Optional& seed,
                                                              double dropout_p, bool needs_dweight,
                                                              bool needs_dbias);
std::tuple<Tensor, Tensor, Tensor> add_rms_norm_fwd(const Tensor& x, const Tensor& residual, const Optional& weight,
                                                    const Optional& seed, double eps, double dropout_p);
std::tuple<Tensor, Tensor, Tensor> add_rms_norm_bwd(const Tensor& dy, const Optional& ds, const Tensor& s,
                                                    const Optional& weight, const Tensor& rstd, const Optional& seed,
                                                    double dropout_p, bool needs_dweight);

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_fwd(const Tensor& logits, const Tensor& target,
                                                             const Optional& weight, std::int64_t ignore_index,
                                                             double smoothing);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cross_entropy_reduced_fwd(
    const Tensor& logits, const Tensor& target, const Optional& weight, std::int64_t ignore_index, double smoothing,
    double z_loss, bool mean);
Tensor cross_entropy_bwd(const Tensor& dloss, const Optional& dlse, const Tensor& logits, const Tensor& target,
                         const Optional& weight, const Tensor& max, const Tensor& sum, std::int64_t ignore_index,
                         double smoothing);

#define FUSEDFORMER_FUNCTIONS(X)                                                                                   \
  X(softmax_fwd) X(softmax_bwd) X(log_softmax_fwd) X(log_softmax_bwd) X(masked_softmax_fwd) X(masked_softmax_bwd)  \
  X(gelu_fwd) X(gelu_bwd) X(bias_activation_fwd) X(bias_activation_bwd) X(glu_fwd) X(glu_bwd)                      \
  X(layer_norm_fwd) X(layer_norm_bwd) X(rms_norm_fwd) X(rms_norm_bwd)                                              \
  X(add_layer_norm_fwd) X(add_layer_norm_bwd) X(add_rms_norm_fwd) X(add_rms_norm_bwd)                              \
  X(cross_entropy_fwd) X(cross_entropy_reduced_fwd) X(cross_entropy_bwd)

// A new tensor on the device of `like`, contiguous, of ScalarType number `dtype`.
using Allocate = AtenTensorHandle(AtenTensorHandle like, const std::int64_t* sizes, std::size_t dims, int dtype);

// What outputs come from; null for PyTorch's way that its stable ABI has, which takes the dispatcher.
inline Allocate* allocate = nullptr;

// All of a library's, which `fusedformer_functions` gives: other symbols of it are not to be seen from outside.
struct Table {
  std::size_t bytes = sizeof(Table);  // tells a table of another version
  Allocate** allocate = &functions::allocate;
#define FUSEDFORMER_MEMBER(name) decltype(&functions::name) name = nullptr;
  FUSEDFORMER_FUNCTIONS(FUSEDFORMER_MEMBER)
#undef FUSEDFORMER_MEMBER
};

}  // namespace fusedformer::functions
