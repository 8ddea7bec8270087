"""How an op gets into PyTorch: one schema, and PyTorch's own dispatcher chooses the implementation.

    dispatch key                implementation
    CUDA                        csrc/, registered by the compiled extension _C.so, or the Triton launcher given here
    CompositeExplicitAutograd   everything else: PyTorch's own fused kernels (kernels/aten.py), or, in the emulated
                                world, the device code on the CPU
    Meta                        shapes and dtypes only
    Autograd                    the op's gradient, itself an op with a derivative of its own
    FuncTorchBatched            torch.vmap

Python asks an op by the `Op` that `define` returns, which comes to the same and spares most calls the way through the
dispatcher. CUDA tensors without the extension end at the second line too: the same function, through PyTorch. What
each op has to compute is written out in kernels/reference.py, which runs in tests, for the derivatives of backward ops,
and in place of the op where something else than its gradient is asked for: forward-mode AD, torch.func.grad, vmap.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedformer.kernels import eager, emulation

NAMESPACE = "fusedformer"
DEVICE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_library = torch.library.Library(NAMESPACE, "DEF")
_TENSORS = frozenset({Tensor, torch.nn.Parameter})  # not their subclasses
_PLAIN_TYPES = frozenset({int, float, bool, list, type(None)})

# Asked at every call, where each look into a module counts.
_included_keys = torch._C._dispatch_tls_local_include_set
_torch_function_modes = torch._C._len_torch_function_stack
_is_profiling = torch._C._autograd._profiler_enabled
_is_autocast = torch._C._is_any_autocast_enabled

_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
# All dispatch keys but those that are in force for the thread although nobody has asked for anything.
_UNUSUAL_KEYS = ~_included_keys().raw_repr()


class Op:
    """One op, to be called: by the dispatcher, or, where that would only choose it, by the implementation itself.

    A call through the dispatcher costs several microseconds for each key whose implementation is Python, which a small
    tensor's kernel does not. It is for whoever else has a say: a mode, a transform, a tracer, a profiler, a subclass.
    """

    def __init__(
        self,
        name: str, on_cpu: Callable[..., Any], on_cuda: Callable[..., Any] | None, native: Callable[..., Any] | None,
    ) -> None:  # fmt: skip
        self.native = native  # see kernels/native.py
        self._dispatched = getattr(getattr(torch.ops, NAMESPACE), name).default
        # A kernel of csrc/ is asked for by its dispatch key, at once: on the way to it are only Python's formulas.
        self._on_cpu = on_cpu
        self._on_cuda = on_cuda or functools.partial(self._dispatched.redispatch, _CUDA)
        self.function: Any = None  # torch.autograd.Function, of a differentiable op
        self.definition: Callable[..., Any] | None = None  # in differentiable PyTorch
        self.mutated: Sequence[int] = ()  # arguments that it writes to

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or _is_watched():
            return self._dispatched(*args)
        requires_grad = False
        for arg in args:
            kind = type(arg)
            if kind in _TENSORS:
                requires_grad = requires_grad or arg.requires_grad
            elif kind not in _PLAIN_TYPES:  # a subclass of Tensor, a symbolic size
                return self._dispatched(*args)
        if requires_grad and torch.is_grad_enabled():
            return self._dispatched(*args) if self.function is None else self.function.apply(*args)
        for index in self.mutated:
            torch.autograd.graph.increment_version(args[index])
        return self._compute(args, False)

    def natively(self, *args: Any) -> Any:
        """What PyTorch computes and differentiates by itself; None where it would not, or not just the same.

        None too where an argument is no good: what comes next checks it.
        """
        x, native = args[0], self.native
        if native is None or torch.compiler.is_compiling() or type(x) not in _TENSORS or not x.is_cpu:
            return None
        if emulation.is_active() or _is_autocast() or _is_watched():
            return None
        try:
            return native(*args)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return None

    def by_kernel(self, *args: Any) -> Any:
        """The op's result by csrc/, which checks what it is given; None where something is to be looked at first.

        None too where it did not like an argument (what comes next says what is wrong, or converts it), or a definition
        that checks nothing is in its place.
        """
        x = args[0]
        if torch.compiler.is_compiling() or _is_autocast() or _is_watched() or type(x) not in _TENSORS:
            return None
        is_there = _has_extension if x.is_cuda else x.is_cpu and emulation.is_active()
        if not is_there or self._on_cuda is self.definition:
            return None
        requires_grad = False
        for arg in args:
            kind = type(arg)
            if kind in _TENSORS:
                requires_grad = requires_grad or arg.requires_grad
            elif kind not in _PLAIN_TYPES:
                return None
        try:
            if requires_grad and torch.is_grad_enabled():
                return self.function.apply(*args)
            return self._on_cuda(*args) if x.is_cuda else self._on_cpu(*args)
        except (RuntimeError, TypeError, ValueError):
            return None

    def compute(self, *args: Any) -> Any:
        """The op's result, with no gradient; `args` as the dispatcher would hand them on."""
        return self._compute(args, _is_watched())

    def _compute(self, args: Sequence[Any], is_watched: bool) -> Any:
        if not is_watched:
            if args[0].is_cpu:
                return self._on_cpu(*args)
            if args[0].is_cuda:
                return self._on_cuda(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return self._dispatched(*args)


def _is_watched() -> bool:
    """Whether somebody beside the caller may want to see an op, or to do something else in its place."""
    return (
        _included_keys().raw_repr() & _UNUSUAL_KEYS != 0  # modes, transforms, tracers
        or _torch_function_modes() > 0
        or forward_ad._current_level >= 0
        or _is_profiling()
    )


_ops: dict[str, Op] = {}


def define(
    schema: str,
    *,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    launch: Callable[..., Any] | None = None,
    native: Callable[..., Any] | None = None,
) -> Op:
    """Define one op, and return it.

    Args:
        schema: the op's schema without a namespace, and without default values.
        fallback: the op through PyTorch, for every device that has no kernel.
        fake: gives empty outputs of the right shape, dtype and (contiguous) strides.
        launch: launches the Triton kernel; None where the kernel is in csrc/ and registers itself.
        native: the function of kernels/native.py, for `Op.natively`.
    """
    name = schema[: schema.index("(")]
    _library.define(schema)
    if launch is None:
        emulation.declare(schema)
    emulated = launch or functools.partial(emulation.call, name)
    without_kernel = functools.partial(_without_kernel, emulated, fallback)
    _library.impl(name, without_kernel, "CompositeExplicitAutograd")
    if launch is not None:
        _library.impl(name, launch, "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    _ops[name] = Op(name, without_kernel, launch, native)
    return _ops[name]


def _without_kernel(emulated: Callable[..., Any], fallback: Callable[..., Any], first: Tensor, *args: Any) -> Any:
    """An op on a device that no kernel is registered for: a CUDA device among them where the extension is missing."""
    if first.is_cuda:
        _warn_once_of_broken_extension()
    elif emulation.is_active():
        return emulated(first, *args)
    return fallback(first, *args)


def differentiate(
    name: str,
    backward: Callable[..., Any],
    save: Callable[..., None],
    definition: Callable[..., Any] | None = None,
    *,
    row_wise: bool = False,
) -> None:
    """Give op `name` its gradient and, by its definition, the transforms of torch.func and forward-mode AD.

    Args:
        name: the op's, in the package's namespace.
        backward: `backward(ctx, *grads)` gives the gradient of each argument.
        save: `save(ctx, inputs, output)` keeps what `backward` needs.
        definition: the op in differentiable PyTorch; where there is none, transforms raise NotImplementedError.
        row_wise: leading dimensions do not interact and all tensors have the same ones, so the op itself serves vmap.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    # Not torch.library.register_autograd: its gradient would be asked for under torch.func, which refuses it, and in
    # forward mode, where it loses the tangents without a word.
    def autograd(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            return transformed(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return (transformed if torch._C._are_functorch_transforms_active() else function.apply)(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = _ops[name].compute(*args)
        save(ctx, args, output)
        return output

    def no_definition(*_: Any) -> Any:
        raise NotImplementedError(f"{NAMESPACE}::{name} has no forward-mode derivative and no torch.func transforms")

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        def batch_first(argument: Any, dim: int | None) -> Any:
            if dim is not None:
                return argument.movedim(dim, 0)
            return argument.expand(info.batch_size, *argument.shape) if isinstance(argument, Tensor) else argument

        return op(*map(batch_first, args, in_dims)), 0

    function: Any = type(name, (torch.autograd.Function,), {
        "forward": staticmethod(forward), "backward": staticmethod(backward)
    })  # fmt: skip
    _ops[name].function, _ops[name].definition = function, definition
    transformed = definition or no_definition
    _library.impl(name, autograd, "Autograd")
    if row_wise:
        torch.library.register_vmap(op, batched, lib=_library)
    elif definition is not None:
        _library.impl(name, definition, "FuncTorchBatched")


@contextlib.contextmanager
def by_definition() -> Iterator[None]:
    """Inside the block, ops called from Python compute their definitions, plain PyTorch, and no kernel on any device.

    An op without a definition computes as outside, and so does every op where it is watched: under a mode of PyTorch's,
    a transform, a profiler.
    """
    implementations = {op: (op._on_cpu, op._on_cuda, op.native) for op in _ops.values()}
    try:
        for op in implementations:
            if op.definition is not None:
                op._on_cpu, op._on_cuda, op.native = op.definition, op.definition, None
        with eager.off():
            yield
    finally:
        for op, (on_cpu, on_cuda, native) in implementations.items():
            op._on_cpu, op._on_cuda, op.native = on_cpu, on_cuda, native


def refuse_gradients(name: str, instead: str, mutated: Sequence[int] = ()) -> None:
    """Let op `name` raise NotImplementedError, saying what to do `instead`, where a derivative of it is asked for.

    Arguments number `mutated` are written to, which autograd is told.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    _ops[name].mutated = mutated

    def autograd(*args: Any) -> Any:
        if (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)) or forward_ad._current_level >= 0:
            raise NotImplementedError(f"{NAMESPACE}::{name} has no derivative: {instead}")
        for index in mutated:
            torch.autograd.graph.increment_version(args[index])
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _library.impl(name, autograd, "Autograd")


def triton_launchers(module: str) -> Any:
    """The module of Triton launchers; None where there is no Triton, and PyTorch computes on every device."""
    return importlib.import_module(module) if importlib.util.find_spec("triton") else None


def vjp(function: Callable[..., Any], inputs: Sequence[Tensor], grads: Any) -> tuple[Tensor, ...]:
    """Gradients of plain PyTorch at `inputs`, themselves differentiable: what a backward op derives from."""
    pull_back = torch.func.vjp(function, *inputs)[1]
    return pull_back(grads)


def are_alike(x: Any, *others: Any) -> bool:
    """Whether x is a tensor that every device computes, and the others are None or tensors of its dtype and device.

    By few looks: the usual call of an op is that, and the checks that say what is wrong take several times longer.
    """
    if not isinstance(x, Tensor) or x.dtype not in DEVICE_DTYPES:
        return False
    dtype, device = x.dtype, x.device
    for other in others:
        if other is not None and not (isinstance(other, Tensor) and other.dtype == dtype and other.device == device):
            return False
    return True


def check_dtype(function: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless every tensor has a dtype that the implementation for its device computes."""
    for name, tensor in tensors.items():
        if tensor is None or tensor.dtype in DEVICE_DTYPES:
            continue
        on_device_code = tensor.is_cuda or emulation.is_active()
        if on_device_code or tensor.dtype != torch.float64:
            allowed = "float32, float16 or bfloat16" + ("" if on_device_code else " (float64 on the CPU too)")
            raise ValueError(f"{function}: {name} is {short(tensor.dtype)}, expected {allowed}")


def check_device(function: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on one device."""
    given = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} is on {device}" for name, device in given.items())
        raise ValueError(f"{function}: {listed}: all tensors must be on one device")


def check_tensor(function: str, name: str, value: object) -> None:
    """Raise ValueError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{function}: {name} is {type(value).__name__}, expected a torch.Tensor")


def check_dim(function: str, x: Tensor, dim: object) -> None:
    """Raise ValueError unless `dim` is one of x's dimensions."""
    if not hasattr(dim, "__index__"):
        raise ValueError(f"{function}: dim is {dim!r}, expected an int")
    if not -x.dim() <= dim.__index__() < x.dim():
        raise ValueError(f"{function}: dim is {dim}, x has {x.dim()} dimensions: shape {tuple(x.shape)}")


def random_seed(function: str, x_name: str, x: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor | None:
    """The seed of dropout as (1,), drawn from PyTorch's generator of x's device where none is given; None without.

    Raises:
        ValueError: seed is not one int64 on x's device.
    """
    if seed is None and dropout_p == 0:
        return None
    if seed is not None:
        check_tensor(function, "seed", seed)
        check_device(function, **{x_name: x, "seed": seed})
        if seed.dtype != torch.int64 or seed.numel() != 1:
            given = f"{short(seed.dtype)} of shape {tuple(seed.shape)}"
            raise ValueError(f"{function}: seed is {given}, expected int64 of one element")
    if dropout_p == 0:
        return None
    return torch.randint(2**62, (1,), device=x.device) if seed is None else seed.reshape(1)


def short(dtype: torch.dtype) -> str:
    """The dtype's name, without its module."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def extension_status() -> str:
    """Load the compiled CUDA extension once; "loaded", or the reason why PyTorch serves CUDA tensors instead."""
    path = Path(__file__).parents[1] / "_C.so"
    if not path.exists():
        return f"not built: {path.name} is not in the package (no nvcc when it was installed)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"not loadable: {error}"
    eager.connect("cuda", path)
    return "loaded"


@functools.cache
def _warn_once_of_broken_extension() -> None:
    """Say so to the caller of an op, when a CUDA tensor comes: until then it makes no difference."""
    status = extension_status()
    if not status.startswith("not loadable"):
        return
    frame, depth = sys._getframe(1), 2
    packages = ("fusedformer", "torch")
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in packages:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(f"fusedformer's compiled extension is {status}; PyTorch computes instead", stacklevel=depth)


# PyTorch's dispatcher chooses among the kernels that it knows when an op is called, so they are made known here.
_has_extension = extension_status() == "loaded"
