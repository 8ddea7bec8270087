// What a call of an operator needs beside the operator: arguments from Python, whether anybody else has a say in it, and a
// node of autograd's graph. Built against one version of PyTorch and of Python, whose C++ it uses; see eager.cpp.
#pragma once

#include <torch/csrc/autograd/python_variable.h>  // Python.h comes first

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "functions.h"

namespace fusedformer::eager {

using at::Tensor;
using Optional = std::optional<Tensor>;
using functions::Table;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// The operators on CUDA tensors, and on those of the CPU in the emulated world; null where there are none.
inline const Table* on_cuda = nullptr;
inline const Table* on_cpu = nullptr;

// Tensors of the stable ABI are handles of PyTorch's: what each type of functions.h is here, and back.
template <class T>
struct Handles {
  using Type = T;
  static T to_stable(T value) { return value; }
  static T from_stable(T value) { return value; }
};

template <>
struct Handles<torch::stable::Tensor> {
  using Type = Tensor;
  static torch::stable::Tensor to_stable(const Tensor& tensor) {
    return torch::stable::Tensor(torch::aot_inductor::new_tensor_handle(Tensor(tensor)));
  }
  static Tensor from_stable(const torch::stable::Tensor& tensor) {
    return *torch::aot_inductor::tensor_handle_to_tensor_pointer(tensor.get());
  }
};

template <>
struct Handles<functions::Optional> {
  using Type = Optional;
  static functions::Optional to_stable(const Optional& tensor) {
    return tensor ? functions::Optional(Handles<torch::stable::Tensor>::to_stable(*tensor)) : std::nullopt;
  }
};

template <class... T>
struct Handles<std::tuple<T...>> {
  using Type = std::tuple<typename Handles<T>::Type...>;
  static Type from_stable(const std::tuple<T...>& values) {
    return std::apply([](const T&... value) { return Type(Handles<T>::from_stable(value)...); }, values);
  }
};

// Calls `visit` with each tensor that there is among the arguments of a call.
template <class Visit, class... Args>
void for_tensors(const Visit& visit, const Args&... args) {
  const auto look = [&](const auto& arg) {
    using T = std::decay_t<decltype(arg)>;
    if constexpr (std::is_same_v<T, Tensor>) visit(arg);
    if constexpr (std::is_same_v<T, Optional>) {
      if (arg) visit(*arg);
    }
  };
  (look(args), ...);
}

// Whether nobody but the operator and autograd has a say in a call: no mode, transform, tracer, profiler. Autocast has
// none: operators compute in the type of their input.
inline bool is_unwatched() {
  const auto& keys = c10::impl::tls_local_dispatch_key_set();
  return !keys.excluded_.has(c10::DispatchKey::AutogradFunctionality) && !at::impl::torch_function_mode_enabled() &&
         !at::hasCallbacks();
}

// The operators for these tensors: strided ones of one kind of device, with nothing lazy about them. Null if not.
template <class... Args>
const Table* table_for(const Args&... args) {
  static const c10::DispatchKeySet usual =
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::BackendSelect,
                           c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutogradFunctionality,
                           c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}) |
      c10::DispatchKeySet({c10::BackendComponent::CUDABit, c10::BackendComponent::CPUBit});
  const auto& thread = c10::impl::tls_local_dispatch_key_set();
  c10::DispatchKeySet keys = thread.included_;
  bool has_tangent = false;
  for_tensors([&](const Tensor& tensor) {
    keys = keys | tensor.key_set();
    has_tangent = has_tangent || tensor._fw_grad(0).defined();
  }, args...);
  // As bits: the difference of two sets keeps the backends of the first.
  const bool is_usual = (keys.raw_repr() & ~thread.excluded_.raw_repr() & ~usual.raw_repr()) == 0;
  if (has_tangent || !is_usual || !is_unwatched()) return nullptr;
  const bool has_cuda = keys.has_backend(c10::BackendComponent::CUDABit);
  const bool has_cpu = keys.has_backend(c10::BackendComponent::CPUBit);
  return has_cuda && has_cpu ? nullptr : has_cuda ? on_cuda : on_cpu;
}

template <class... Args>
bool any_requires_grad(const Args&... args) {
  bool any = false;
  if (at::GradMode::is_enabled()) {
    for_tensors([&](const Tensor& tensor) { any = any || tensor.requires_grad(); }, args...);
  }
  return any;
}

// A tensor as PyTorch's own operators allocate their results. All of it will be written.
inline AtenTensorHandle allocate(AtenTensorHandle like, const std::int64_t* sizes, std::size_t dims, int dtype) {
  const c10::Device device = torch::aot_inductor::tensor_handle_to_tensor_pointer(like)->device();
  const c10::DeviceGuard guard(device);
  const auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  return torch::aot_inductor::new_tensor_handle(
      Tensor(at::detail::empty_generic({sizes, dims}, c10::GetAllocator(device.type()), c10::DispatchKeySet(key),
                                       static_cast<at::ScalarType>(dtype), std::nullopt)));
}

// An operator of functions.h, over PyTorch's tensors.
template <class Signature>
class Operator;

template <class Result, class... Args>
class Operator<Result (*)(Args...)> {
 public:
  using Function = Result (*)(Args...);
  using Value = typename Handles<Result>::Type;
  template <class T>
  using Given = std::conditional_t<std::is_reference_v<T>, const typename Handles<std::decay_t<T>>::Type&, T>;

  Operator(const char* name, Function Table::* member) : name_(name), member_(member) {}

  // The kernel, and nothing else.
  Value operator()(const Table& table, Given<Args>... args) const {
    const at::AutoDispatchBelowAutograd without_gradient;
    return Handles<Result>::from_stable((table.*member_)(Handles<std::decay_t<Args>>::to_stable(args)...));
  }

  // In a backward, whose own derivative may be asked for: then it is the dispatcher's, and Python's formulas.
  Value in_backward(Given<Args>... args) const {
    if (!any_requires_grad(args...)) {
      if (const Table* const table = table_for(args...)) return (*this)(*table, args...);
    }
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow((std::string("fusedformer::") + name_).c_str(), "")
        .template typed<Value(Given<Args>...)>()
        .call(args...);
  }

 private:
  const char* name_;
  Function Table::* member_;
};

#define FUSEDFORMER_OPERATOR(name) inline const Operator<decltype(&functions::name)> name(#name, &Table::name);
FUSEDFORMER_FUNCTIONS(FUSEDFORMER_OPERATOR)
#undef FUSEDFORMER_OPERATOR

// A node of autograd's graph: gradients of an operator's inputs by those of its outputs and what it saved.
class Gradient : public Node {
 public:
  // `saved` as given to `record`; undefined where there was none.
  using Formula = std::function<variable_list(const Gradient& node, const variable_list& grads,
                                              const variable_list& saved)>;

  Gradient(const char* name, Formula formula) : name_(name), formula_(std::move(formula)) {}

  std::string name() const override { return name_; }

  // Whether the gradient of input number `index` is asked for.
  bool needs(std::size_t index) const { return task_should_compute_output(index); }

  variable_list apply(variable_list&& grads) override {
    const variable_list saved = unpack();
    bool has_any = false;
    for (const Tensor& grad : grads) has_any = has_any || grad.defined();
    return has_any ? formula_(*this, grads, saved) : variable_list(num_outputs());
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& variable : saved_) variable.reset_data();
  }

 private:
  variable_list unpack() {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list saved;
    saved.reserve(saved_.size());
    for (const SavedVariable& variable : saved_) saved.push_back(variable.unpack(getptr()));
    return saved;
  }

  friend void record(const char*, std::initializer_list<Tensor>, std::initializer_list<Tensor>,
                     std::initializer_list<std::pair<Tensor, bool>>, Formula);

  const char* name_;
  Formula formula_;
  std::vector<SavedVariable> saved_;
};

inline auto new_gradient(const char* name, Gradient::Formula formula) {
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 13
  return std::shared_ptr<Gradient>(new Gradient(name, std::move(formula)), torch::autograd::deleteNode);
#else
  return c10::make_intrusive<Gradient>(name, std::move(formula));
#endif
}

// Saved for the backward: an input of the operator, or one of its outputs.
inline std::pair<Tensor, bool> input(const Tensor& tensor) { return {tensor, false}; }
inline std::pair<Tensor, bool> input(const Optional& tensor) { return {tensor.value_or(Tensor()), false}; }
inline std::pair<Tensor, bool> output(const Tensor& tensor) { return {tensor, true}; }

// Makes `outputs` the results of a node with these `inputs`, undefined where there is none.
inline void record(const char* name, std::initializer_list<Tensor> inputs, std::initializer_list<Tensor> outputs,
                   std::initializer_list<std::pair<Tensor, bool>> saved, Gradient::Formula formula) {
  const auto node = new_gradient(name, std::move(formula));
  torch::autograd::edge_list edges;
  for (const Tensor& tensor : inputs) {
    edges.push_back(tensor.defined() ? torch::autograd::impl::gradient_edge(tensor) : torch::autograd::Edge());
  }
  node->set_next_edges(std::move(edges));
  for (const Tensor& tensor : outputs) torch::autograd::set_history(tensor, node);
  node->saved_.reserve(saved.size());
  for (const auto& [tensor, is_output] : saved) node->saved_.emplace_back(tensor, is_output);
}

inline Optional given(const Tensor& tensor) { return tensor.defined() ? Optional(tensor) : std::nullopt; }

// An argument from Python, if it is just what is expected.
inline bool unpack(PyObject* object, Tensor& value) {
  if (!THPVariable_CheckExact(object)) return false;
  value = THPVariable_Unpack(object);
  return true;
}

inline bool unpack(PyObject* object, Optional& value) {
  if (object == Py_None) return true;
  value.emplace();
  return unpack(object, *value);
}

inline bool unpack(PyObject* object, bool& value) {
  value = object == Py_True;
  return PyBool_Check(object);
}

inline bool unpack(PyObject* object, std::int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  value = PyLong_AsLongLong(object);
  return value != -1 || !PyErr_Occurred();
}

inline bool unpack(PyObject* object, double& value) {
  if (!PyFloat_CheckExact(object) && !PyLong_CheckExact(object)) return false;
  value = PyFloat_AsDouble(object);
  return value != -1 || !PyErr_Occurred();
}

inline PyObject* wrap(Tensor tensor) { return THPVariable_Wrap(std::move(tensor)); }

inline PyObject* wrap(const std::tuple<Tensor, Tensor>& tensors) {
  PyObject* const pair = PyTuple_New(2);
  if (pair == nullptr) return nullptr;
  PyTuple_SET_ITEM(pair, 0, wrap(std::get<0>(tensors)));
  PyTuple_SET_ITEM(pair, 1, wrap(std::get<1>(tensors)));
  return pair;
}

// `function` for Python: its result, or None where an argument is not as expected, somebody else has a say, or an error
// came up, which the way through the dispatcher will tell in its own words.
template <auto function>
class Entry;

template <class Result, class... Args, Result (*function)(const Table&, Args...)>
class Entry<function> {
 public:
  static PyObject* call(PyObject*, PyObject* const* objects, Py_ssize_t count) {
    return run(objects, count, std::index_sequence_for<Args...>());
  }

 private:
  template <std::size_t... I>
  static PyObject* run(PyObject* const* objects, Py_ssize_t count, std::index_sequence<I...>) {
    std::tuple<std::decay_t<Args>...> values;
    if (count != sizeof...(Args) || !(unpack(objects[I], std::get<I>(values)) && ...)) {
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    std::optional<Result> result;
    try {
      if (const Table* const table = table_for(std::get<I>(values)...)) {
        const pybind11::gil_scoped_release without_gil;
        result = function(*table, std::get<I>(values)...);
      }
    } catch (const std::exception&) {
    }
    if (!result) Py_RETURN_NONE;
    return wrap(std::move(*result));
  }
};

}  // namespace fusedformer::eager
