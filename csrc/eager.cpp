// Calls of the operators as PyTorch makes those of its own: from Python to the kernel in one step, with gradients in C++.
//
// Through the dispatcher, a call costs what Python and boxed arguments cost, and a gradient in Python as much again; a
// small tensor's kernel takes less. What is called here is what the public functions of src/fusedformer/kernels compute;
// each gives None where a call is not of the usual kind, and they take the way through the dispatcher. Derivatives of a
// backward go that way too. Unlike the rest of csrc/ this file is tied to one version of PyTorch and of Python; without
// it, or beside others, all works as well, and slower.
#include "eager.h"

namespace {

using namespace fusedformer::eager;

Tensor or_undefined(const Optional& tensor) { return tensor.value_or(Tensor()); }

Tensor gelu(const Table& table, const Tensor& x, bool tanh) {
  Tensor y = gelu_fwd(table, x, tanh);
  if (any_requires_grad(x)) {
    record("GeluBackward", {x}, {y}, {input(x)}, [tanh](auto&, auto& grads, auto& saved) -> variable_list {
      return {gelu_bwd.in_backward(grads[0], saved[0], tanh)};
    });
  }
  return y;
}

Tensor bias_activation(const Table& table, const Tensor& x, const Tensor& bias, std::int64_t activation) {
  Tensor y = bias_activation_fwd(table, x, bias, activation);
  if (any_requires_grad(x, bias)) {
    record("BiasActivationBackward", {x, bias}, {y}, {input(x), input(bias)},
           [activation](auto& node, auto& grads, auto& saved) -> variable_list {
             const bool needs_dbias = node.needs(1);
             auto [dx, dbias] = bias_activation_bwd.in_backward(grads[0], saved[0], saved[1], activation, needs_dbias);
             return {dx, needs_dbias ? dbias : Tensor()};
           });
  }
  return y;
}

Tensor glu(const Table& table, const Tensor& x, const Optional& up, std::int64_t activation) {
  Tensor y = glu_fwd(table, x, up, activation);
  if (any_requires_grad(x, up)) {
    record("GluBackward", {x, or_undefined(up)}, {y}, {input(x), input(up)},
           [activation](auto&, auto& grads, auto& saved) -> variable_list {
             auto [dx, dup] = glu_bwd.in_backward(grads[0], saved[0], given(saved[1]), activation);
             return {dx, saved[1].defined() ? dup : Tensor()};
           });
  }
  return y;
}

// Softmax and its logarithm, whose gradients take the result.
template <const auto& forward, const auto& backward>
Tensor of_rows(const char* node, const Table& table, const Tensor& x) {
  Tensor y = forward(table, x);
  if (any_requires_grad(x)) {
    record(node, {x}, {y}, {output(y)}, [](auto&, auto& grads, auto& saved) -> variable_list {
      return {backward.in_backward(grads[0], saved[0])};
    });
  }
  return y;
}

Tensor softmax(const Table& table, const Tensor& x) {
  return of_rows<softmax_fwd, softmax_bwd>("SoftmaxBackward", table, x);
}

Tensor log_softmax(const Table& table, const Tensor& x) {
  return of_rows<log_softmax_fwd, log_softmax_bwd>("LogSoftmaxBackward", table, x);
}

Tensor masked_softmax(const Table& table, const Tensor& x, const Optional& mask, bool causal, double scale) {
  Tensor y = masked_softmax_fwd(table, x, mask, causal, scale);
  if (any_requires_grad(x, mask)) {
    const auto mask_dtype = mask ? mask->scalar_type() : x.scalar_type();
    record("MaskedSoftmaxBackward", {x, or_undefined(mask)}, {y}, {output(y)},
           [causal, scale, mask_dtype](auto& node, auto& grads, auto& saved) -> variable_list {
             if (!node.needs(1)) return {masked_softmax_bwd.in_backward(grads[0], saved[0], causal, scale), Tensor()};
             const Tensor dscores = masked_softmax_bwd.in_backward(grads[0], saved[0], causal, 1.0);
             return {scale == 1 ? dscores : dscores.mul(scale), dscores.to(mask_dtype)};
           });
  }
  return y;
}

Tensor layer_norm(const Table& table, const Tensor& x, const Optional& weight, const Optional& bias, double eps) {
  auto [y, mean, rstd] = layer_norm_fwd(table, x, weight, bias, eps);
  if (any_requires_grad(x, weight, bias)) {
    record("LayerNormBackward", {x, or_undefined(weight), or_undefined(bias)}, {y},
           {input(x), input(weight), input(mean), input(rstd)},
           [](auto& node, auto& grads, auto& saved) -> variable_list {
             const bool needs_dweight = node.needs(1), needs_dbias = node.needs(2);
             auto [dx, dweight, dbias] = layer_norm_bwd.in_backward(grads[0], saved[0], given(saved[1]), saved[2],
                                                                    saved[3], needs_dweight, needs_dbias);
             return {dx, needs_dweight ? dweight : Tensor(), needs_dbias ? dbias : Tensor()};
           });
  }
  return y;
}

Tensor rms_norm(const Table& table, const Tensor& x, const Optional& weight, double eps) {
  auto [y, rstd] = rms_norm_fwd(table, x, weight, eps);
  if (any_requires_grad(x, weight)) {
    record("RmsNormBackward", {x, or_undefined(weight)}, {y}, {input(x), input(weight), input(rstd)},
           [](auto& node, auto& grads, auto& saved) -> variable_list {
             const bool needs_dweight = node.needs(1);
             auto [dx, dweight] =
                 rms_norm_bwd.in_backward(grads[0], saved[0], given(saved[1]), saved[2], needs_dweight);
             return {dx, needs_dweight ? dweight : Tensor()};
           });
  }
  return y;
}

// The gradient of a norm's result, zeros where only s was used.
Tensor or_zeros(const Tensor& grad, const Tensor& like) { return grad.defined() ? grad : at::zeros_like(like); }

std::tuple<Tensor, Tensor> add_layer_norm(const Table& table, const Tensor& x, const Tensor& residual,
                                          const Optional& weight, const Optional& bias, const Optional& seed,
                                          double eps, double dropout_p) {
  auto [y, s, mean, rstd] = add_layer_norm_fwd(table, x, residual, weight, bias, seed, eps, dropout_p);
  if (any_requires_grad(x, residual, weight, bias)) {
    record("AddLayerNormBackward", {x, residual, or_undefined(weight), or_undefined(bias)}, {y, s},
           {output(s), input(weight), input(mean), input(rstd), input(seed)},
           [dropout_p](auto& node, auto& grads, auto& saved) -> variable_list {
             const bool needs_dweight = node.needs(2), needs_dbias = node.needs(3);
             auto [dx, dresidual, dweight, dbias] = add_layer_norm_bwd.in_backward(
                 or_zeros(grads[0], saved[0]), given(grads[1]), saved[0], given(saved[1]), saved[2], saved[3],
                 given(saved[4]), dropout_p, needs_dweight, needs_dbias);
             return {saved[4].defined() ? dx : dresidual, dresidual, needs_dweight ? dweight : Tensor(),
                     needs_dbias ? dbias : Tensor()};
           });
  }
  return {y, s};
}

std::tuple<Tensor, Tensor> add_rms_norm(const Table& table, const Tensor& x, const Tensor& residual,
                                        const Optional& weight, const Optional& seed, double eps, double dropout_p) {
  auto [y, s, rstd] = add_rms_norm_fwd(table, x, residual, weight, seed, eps, dropout_p);
  if (any_requires_grad(x, residual, weight)) {
    record("AddRmsNormBackward", {x, residual, or_undefined(weight)}, {y, s},
           {output(s), input(weight), input(rstd), input(seed)},
           [dropout_p](auto& node, auto& grads, auto& saved) -> variable_list {
             const bool needs_dweight = node.needs(2);
             auto [dx, dresidual, dweight] = add_rms_norm_bwd.in_backward(
                 or_zeros(grads[0], saved[0]), given(grads[1]), saved[0], given(saved[1]), saved[2], given(saved[3]),
                 dropout_p, needs_dweight);
             return {saved[3].defined() ? dx : dresidual, dresidual, needs_dweight ? dweight : Tensor()};
           });
  }
  return {y, s};
}

// Of all rows, reduced: each has its share of the loss's gradient. With a z-loss, lse is a result too, for the backward's
// own derivative.
Tensor cross_entropy(const Table& table, const Tensor& logits, const Tensor& target, const Optional& weight,
                     std::int64_t ignore_index, double smoothing, double z_loss, bool mean) {
  auto [loss, lse, max, sum, scales] =
      cross_entropy_reduced_fwd(table, logits, target, weight, ignore_index, smoothing, z_loss, mean);
  if (any_requires_grad(logits)) {
    if (z_loss == 0) lse = Tensor();
    record("CrossEntropyBackward", {logits}, {loss, lse},
           {input(logits), input(target), input(weight), input(max), input(sum), input(scales), output(lse)},
           [=](auto&, auto& grads, auto& saved) -> variable_list {
             const Tensor &scales = saved[5], &lse = saved[6];
             Tensor dloss_rows, dlse = grads[1];
             if (const Tensor& dloss = grads[0]; dloss.defined()) {
               dloss_rows = (mean ? dloss.mul(scales.select(0, 0)) : dloss).expand(saved[1].sizes());
               if (lse.defined()) {
                 const Tensor of_penalty = dloss.mul(scales.select(0, 1)).mul(lse);
                 dlse = dlse.defined() ? dlse.add(of_penalty) : of_penalty;
               }
             } else {
               dloss_rows = at::zeros_like(dlse);
             }
             return {cross_entropy_bwd.in_backward(dloss_rows, given(dlse), saved[0], saved[1], given(saved[2]),
                                                   saved[3], saved[4], ignore_index, smoothing)};
           });
  }
  return loss;
}

PyObject* connect(const Table*& table, PyObject* address) {
  const auto* const given = static_cast<const Table*>(PyLong_AsVoidPtr(address));
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (given != nullptr && given->bytes != sizeof(Table)) {
    PyErr_SetString(PyExc_ValueError, "_eager and the kernels were built from different sources");
    return nullptr;
  }
  PyObject* const before = PyLong_FromVoidPtr(const_cast<Table*>(table));
  table = given;
  if (table != nullptr) *table->allocate = allocate;
  return before;
}

PyObject* connect_cuda(PyObject*, PyObject* address) { return connect(on_cuda, address); }
PyObject* connect_cpu(PyObject*, PyObject* address) { return connect(on_cpu, address); }

#define FUSEDFORMER_ENTRY(name) \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&Entry<&name>::call)), METH_FASTCALL, nullptr}

PyMethodDef methods[] = {
    FUSEDFORMER_ENTRY(gelu),
    FUSEDFORMER_ENTRY(bias_activation),
    FUSEDFORMER_ENTRY(glu),
    FUSEDFORMER_ENTRY(softmax),
    FUSEDFORMER_ENTRY(log_softmax),
    FUSEDFORMER_ENTRY(masked_softmax),
    FUSEDFORMER_ENTRY(layer_norm),
    FUSEDFORMER_ENTRY(rms_norm),
    FUSEDFORMER_ENTRY(add_layer_norm),
    FUSEDFORMER_ENTRY(add_rms_norm),
    FUSEDFORMER_ENTRY(cross_entropy),
    {"connect_cuda", connect_cuda, METH_O, "Take the table of operators at this address, or none; what was before."},
    {"connect_cpu", connect_cpu, METH_O, "As connect_cuda, for tensors of the CPU."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_eager", "See csrc/eager.cpp.", -1, methods};

}  // namespace

// It has the version of PyTorch, as the headers have it: with another one, it must not be used.
PyMODINIT_FUNC PyInit__eager() {
  PyObject* const result = PyModule_Create(&module);
  if (result != nullptr) PyModule_AddStringConstant(result, "torch_version", TORCH_VERSION);
  return result;
}
