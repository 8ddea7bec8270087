"""What gl.maximum, gl.exp2 and the like compute: functions of registers alone, by their names in Gluon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fusedformer.simulator.errors import Hazard
from fusedformer.simulator.values import (
    Int32,
    Int64,
    Register,
    check_ranks,
    data_of,
    truncated_quotient,
    wrap,
    wrap_scalar,
)


def _tensor(x: Any) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        return x
    return torch.tensor(x, dtype=torch.int32 if isinstance(x, int) and not isinstance(x, bool) else None)


def _elementwise(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def apply(x: Any) -> Any:
        return wrap(function(_tensor(data_of(x))))

    return apply


def _same_kind(result: Any, *operands: Any) -> Any:
    """A run-time integer, if an operand is one."""
    kinds = [type(x) for x in operands if isinstance(x, Int32)]
    return (Int64 if Int64 in kinds else Int32)(result) if kinds and isinstance(result, int) else result


def _pairwise(
    of_tensors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], of_numbers: Callable[[Any, Any], Any]
) -> Callable[..., Any]:
    def apply(x: Any, y: Any) -> Any:
        a, b = data_of(x), data_of(y)
        if not (isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor)):
            return _same_kind(of_numbers(x, y), x, y)
        check_ranks(a, b)
        return Register(of_tensors(_tensor(a), _tensor(b)))

    return apply


# Of a number and a NaN, the number: what the hardware's max and min give.
maximum = _pairwise(torch.fmax, max)
minimum = _pairwise(torch.fmin, min)


def _extreme(function: Callable[..., torch.Tensor], neutral: float) -> Callable[..., Any]:
    def apply(x: Register, axis: int | None = None, keep_dims: bool = False) -> Any:
        data = data_of(x)
        dims = tuple(range(data.dim())) if axis is None else axis
        result = function(data, dims, keepdim=keep_dims)
        if result.isnan().any():  # which torch gives for any NaN, the hardware where there is nothing else
            numbers = function(data.where(~data.isnan(), neutral), dims, keepdim=keep_dims)
            result = numbers.where(~data.isnan().all(dims, keepdim=keep_dims), math.nan)
        return wrap(result)

    return apply


max_ = _extreme(torch.amax, -math.inf)
min_ = _extreme(torch.amin, math.inf)


def sum_(x: Register, axis: int | None = None, keep_dims: bool = False) -> Any:
    """The sum over an axis, in the type of `x`."""
    data = data_of(x)
    dims = tuple(range(data.dim())) if axis is None else axis
    return wrap(torch.sum(data, dims, keepdim=keep_dims, dtype=None if data.dtype == torch.bool else data.dtype))


def where(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition is true, else `y`."""
    values = [data_of(value) for value in (condition, x, y)]
    if not any(isinstance(value, torch.Tensor) for value in values):
        return x if condition else y
    check_ranks(*values)
    chosen, a, b = map(_tensor, values)
    return Register(torch.where(chosen, a, b))


def fma(x: Any, y: Any, z: Any) -> Any:
    """`x * y + z`."""
    return x * y + z


def cdiv(x: Any, y: Any) -> Any:
    """`x / y` rounded up, for positive integers."""
    return (x + (y - 1)) // y if isinstance(x, Int32) or isinstance(y, Int32) else truncated_quotient(x + y - 1, y)


def full(shape: Sequence[int], value: Any, dtype: torch.dtype, layout: object = None) -> Register:
    """A tensor of one value."""
    return Register(torch.full(tuple(shape), value, dtype=dtype))


def zeros(shape: Sequence[int], dtype: torch.dtype, layout: object = None) -> Register:
    """A tensor of zeros."""
    return full(shape, 0, dtype)


def full_like(x: Register, value: Any, shape: Any = None, dtype: Any = None, layout: object = None) -> Register:
    """A tensor of one value, in the shape and type of `x` if these are not given."""
    return full(shape or x.shape, value, dtype or x.dtype)


def zeros_like(x: Register, shape: Any = None, dtype: Any = None, layout: object = None) -> Register:
    """A tensor of zeros, in the shape and type of `x` if these are not given."""
    return full_like(x, 0, shape, dtype)


def arange(start: int, end: int, layout: object = None) -> Register:
    """The integers from `start` on, before `end`."""
    return Register(torch.arange(start, end, dtype=torch.int32))


def expand_dims(x: Register, axis: int) -> Register:
    """`x` with a dimension of one element more."""
    return Register(data_of(x).unsqueeze(axis))


def convert_layout(x: Register, layout: object, assert_trivial: bool = False) -> Register:
    """`x`: layouts mean nothing here."""
    return Register(data_of(x))


def reshape(x: Register, shape: Sequence[int]) -> Register:
    """The elements of `x` in other dimensions."""
    return Register(data_of(x).reshape(tuple(shape)))


def permute(x: Register, order: Sequence[int]) -> Register:
    """The dimensions of `x` in another order."""
    return Register(data_of(x).permute(tuple(order)))


def split(x: Register) -> tuple[Register, Register]:
    """The halves of `x`, whose last dimension has two elements."""
    low, high = data_of(x).unbind(-1)
    return Register(low), Register(high)


def join(x: Register, y: Register) -> Register:
    """`x` and `y` side by side, in a last dimension of two."""
    return Register(torch.stack((data_of(x), data_of(y)), -1))


def cast(x: Any, dtype: torch.dtype) -> Any:
    """`x` in another type."""
    return x.to(dtype) if isinstance(x, (Register, Int32)) else wrap_scalar(torch.tensor(x).to(dtype))


def static_range(*bounds: int) -> range:
    """A loop that the compiler unrolls: its variable is known when it compiles."""
    return range(*bounds)


def runtime_range(*bounds: int) -> Iterator[Int32]:
    """A loop of the device: what `range` is in a kernel."""
    return map(Int32, range(*bounds))


def static_assert(condition: bool, message: str = "") -> None:
    """What must hold when the kernel is compiled."""
    if not condition:
        raise AssertionError(message or "static_assert")


def check(condition: Any, message: str = "") -> None:
    """What device_assert and assume state must hold."""
    if not torch.as_tensor(data_of(condition)).all():
        raise Hazard(f"what the kernel asserts or assumes does not hold: {message}")


def check_multiple_of(x: Any, values: Any) -> Any:
    """What multiple_of tells the compiler must be so."""
    if isinstance(x, int) and any(x % value for value in ([values] if isinstance(values, int) else values)):
        raise Hazard(f"{x} is no multiple of {values}, as multiple_of says")
    return x


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        function.__name__: function
        for function in (
            where, fma, cdiv, full, zeros, full_like, zeros_like, arange, expand_dims, convert_layout, reshape, permute,
            split, join, cast, static_range, static_assert,
        )
    },
    **{name: _elementwise(getattr(torch, name)) for name in ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "abs")},
    **{name: _elementwise(getattr(torch, name)) for name in ("floor", "ceil", "erf", "sin", "cos")},
    "maximum": maximum,
    "minimum": minimum,
    "max": max_,
    "min": min_,
    "sum": sum_,
    "assume": check,
    "device_assert": check,
    "multiple_of": check_multiple_of,
    "max_contiguous": lambda x, values: x,
    "max_constancy": lambda x, values: x,
    "to_tensor": lambda x: x,
}  # fmt: skip
