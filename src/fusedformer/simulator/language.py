"""Kernels as Python functions of the simulator: the same code, with other things behind the names of its modules.

Each global name that a kernel reads is replaced: an operation of Gluon, by its name, with that of functions.py or
operations.py; another Gluon function with the same treatment; a constexpr with its value; a module with a view of it
that replaces what is read from it. A builtin that the project defines itself stands for the operation of its name.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

from fusedformer.simulator.errors import UnsupportedError
from fusedformer.simulator.functions import FUNCTIONS, runtime_range
from fusedformer.simulator.global_memory import Descriptor, Piece, Pointer, Written
from fusedformer.simulator.values import Int32

DTYPES = {
    "int1": torch.bool, "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32,
    "int64": torch.int64, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2,
}  # fmt: skip
DEVICE_BUILTINS = {
    **vars(builtins),
    "range": runtime_range,
    "min": lambda *args: functools.reduce(FUNCTIONS["minimum"], args),
    "max": lambda *args: functools.reduce(FUNCTIONS["maximum"], args),
}
PLAIN = (int, float, str, tuple, list, type(None), torch.dtype)


class Layout:
    """Any layout: they mean nothing here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def get_default_for(cls, *args: Any, **kwargs: Any) -> Layout:
        """The layout that Gluon would choose."""
        return cls()


class ModuleView:
    """A module as kernels see it."""

    def __init__(self, language: Language, module: types.ModuleType) -> None:
        self._language, self._module = language, module

    def __getattr__(self, name: str) -> Any:
        value = self._language.bind(getattr(self._module, name))
        setattr(self, name, value)
        return value


class Language:
    """What stands behind the names of kernels, in one launch."""

    def __init__(self, operations: dict[str, Callable[..., Any]]) -> None:
        self._operations = {**FUNCTIONS, "constexpr": lambda value: value, **operations}
        self._bound: dict[int, tuple[Any, Any]] = {}

    def bind(self, x: Any) -> Any:
        """The counterpart of something that is known when the kernel is compiled."""
        if isinstance(x, PLAIN):
            return x
        if id(x) not in self._bound:
            self._bound[id(x)] = (x, self._counterpart(x))  # with x, whose id must not be given to another
        return self._bound[id(x)][1]

    def _counterpart(self, x: Any) -> Any:
        if isinstance(x, tl.constexpr):
            return self.bind(x.value)
        if isinstance(x, tl.dtype):
            return DTYPES[x.name]
        if isinstance(x, types.ModuleType):
            return ModuleView(self, x)
        if operation := self._operation(x):
            return operation
        if isinstance(x, JITFunction):
            return self._rebuild(x.fn)
        if inspect.isclass(x):
            return Layout if "Layout" in x.__name__ else x
        if _is_builtin(x):
            name = getattr(x, "__name__", repr(x))
            return lambda *args, **kwargs: _refuse(name)
        return self._rebuild(x.fn) if hasattr(x, "fn") else x

    def _operation(self, x: Any) -> Callable[..., Any] | None:
        """That of the simulator, for one of Gluon's; by name, for Gluon's modules are not the same in every version."""
        module, name = getattr(x, "__module__", None) or "", getattr(x, "__name__", "").lstrip("_")
        if not (module.startswith("triton.") or _is_builtin(x)):
            return None
        tail = module.rpartition(".")[2]
        return self._operations.get(f"{tail}.{name}" if tail in ("mbarrier", "cluster") else name)

    def _rebuild(self, function: Callable[..., Any]) -> Callable[..., Any]:
        code, scope = function.__code__, function.__globals__
        names: dict[str, Any] = {"__builtins__": DEVICE_BUILTINS}
        rebuilt = types.FunctionType(code, names, function.__name__, None, function.__closure__)
        rebuilt.__defaults__ = tuple(map(self.bind, function.__defaults__ or ()))
        rebuilt.__kwdefaults__ = {name: self.bind(value) for name, value in (function.__kwdefaults__ or {}).items()}
        read = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
        names.update({name: self.bind(scope[name]) for name in sorted(read) if name in scope})
        return rebuilt

    def arguments(self, kernel: GluonJITFunction, args: Any, kwargs: Any, written: Written) -> dict[str, Any]:
        """The counterparts of a launch's arguments, by the kernel's names for them."""
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        known = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        return {
            name: self.bind(value) if name in known else runtime_argument(value, written)
            for name, value in bound.arguments.items()
        }


def _is_builtin(x: Any) -> bool:
    return bool(getattr(x, tl.core.TRITON_BUILTIN, False))


def _refuse(name: str) -> None:
    raise UnsupportedError(f"{name} of Gluon")


def runtime_argument(x: Any, written: Written) -> Any:
    """The counterpart of an argument that is known when the kernel runs."""
    if isinstance(x, TensorDescriptor):
        return Descriptor(x, written)
    if isinstance(x, torch.Tensor):
        x = x.detach()
        reach = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        extent = 1 + reach if x.numel() else 0
        flat = x.as_strided((extent,), (1,), x.storage_offset())
        return Pointer(Piece(flat, written.of(flat)))
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float32).item()
    return Int32(x) if type(x) is int else x
