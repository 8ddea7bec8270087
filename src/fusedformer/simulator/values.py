"""What a partition holds in registers: integers, tensors, and matrix products that are not there yet.

Tensors are torch tensors in a class that has Gluon's operators and no others. Layouts mean nothing here: compiling
ahead of time checks those.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from fusedformer.simulator.errors import Hazard, Refusing

HALVES = (torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def truncated_quotient(a: int, b: int) -> int:
    """`a / b` rounded towards zero, as a GPU divides."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def truncated_remainder(a: int, b: int) -> int:
    """What `truncated_quotient` leaves; has the sign of `a`."""
    return a - b * truncated_quotient(a, b)


class Int32(int):
    """A run-time integer of 32 bits. Overflow, which wraps on a GPU, is an error here."""

    bits = 32

    def _apply(self, operation: Callable[[int, int], int], left: object, right: object) -> Any:
        if not (isinstance(left, int) and isinstance(right, int)):
            return NotImplemented
        result = operation(int(left), int(right))
        kind = Int64 if isinstance(left, Int64) or isinstance(right, Int64) else Int32
        if not -(2 ** (kind.bits - 1)) <= result < 2 ** (kind.bits - 1):
            raise Hazard(f"int{kind.bits} overflow: {result}")
        return kind(result)

    def __neg__(self) -> Int32:
        return type(self)(-int(self))

    def to(self, dtype: torch.dtype) -> Any:
        """The value in another type."""
        return wrap_scalar(torch.tensor(int(self), dtype=torch.int64).to(dtype))


class Int64(Int32):
    """A run-time integer of 64 bits."""

    bits = 64


def wrap_scalar(x: torch.Tensor) -> Any:
    """A tensor of no dimensions as the run-time number that it is in Gluon."""
    if x.dtype == torch.bool or x.dtype.is_floating_point:
        return x.item()
    return (Int64 if x.dtype == torch.int64 else Int32)(x.item())


def wrap(x: torch.Tensor) -> Any:
    """A tensor as what it is in Gluon: of registers, or a number."""
    return Register(x) if x.dim() else wrap_scalar(x)


def _define_integer_operators() -> None:
    operations: dict[str, Callable[[int, int], int]] = {
        "floordiv": truncated_quotient,
        "mod": truncated_remainder,
        **{name: getattr(operator, name) for name in ("add", "sub", "mul", "lshift", "rshift", "xor")},
        "and": operator.and_,
        "or": operator.or_,
    }
    for name, operation in operations.items():
        setattr(Int32, f"__{name}__", lambda self, other, do=operation: self._apply(do, self, other))
        setattr(Int32, f"__r{name}__", lambda self, other, do=operation: self._apply(do, other, self))


_define_integer_operators()


def narrowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` in another type; in float8 what is too large is the largest number, where torch gives NaN."""
    if dtype in FLOAT8 and x.dtype.is_floating_point:
        largest = torch.finfo(dtype).max
        x = x.clamp(-largest, largest)
    return x.to(dtype)


class Register(Refusing):
    """A tensor of a partition. Nothing changes it: `x += y` makes another, as in Gluon."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    @property
    def shape(self) -> list[int]:
        """Its sizes."""
        return list(self.data.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""
        return self.data.dtype

    def to(self, dtype: torch.dtype, bitcast: bool = False) -> Register:
        """Each element in another type, or with `bitcast` its bits as that type."""
        if bitcast and dtype.itemsize != self.dtype.itemsize:
            raise TypeError(f"bitcast of {self.dtype} to {dtype}, which has another size")
        return Register(self.data.view(dtype) if bitcast else narrowed(self.data, dtype))

    def __getitem__(self, index: Any) -> Register:
        return Register(self.data[index])

    def __neg__(self) -> Register:
        return Register(-self.data)

    def __invert__(self) -> Register:
        return Register(~self.data)

    def __bool__(self) -> NoReturn:
        raise TypeError(f"a condition must be a scalar, this one is a tensor of shape {self.shape}")


def data_of(x: Any) -> Any:
    """The torch tensor of a register tensor; a number as it is."""
    if isinstance(x, Register):
        return x.data
    if isinstance(x, (int, float)):
        return x
    if isinstance(x, PendingProduct):
        x.use()
    raise TypeError(f"{type(x).__name__} where a tensor or a number of registers is due")


def check_ranks(*tensors: Any) -> None:
    """Gluon gives no tensor the dimensions it lacks."""
    shapes = [list(x.shape) for x in tensors if isinstance(x, torch.Tensor)]
    if len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"tensors of different ranks: {shapes}")


def _tensor(x: Any) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.tensor(x)


def _divide(a: Any, b: Any) -> torch.Tensor:
    return torch.true_divide(*(x.float() if x.dtype in HALVES else x for x in (_tensor(a), _tensor(b))))


def _define_tensor_operators() -> None:
    operations: dict[str, Callable[[Any, Any], torch.Tensor]] = {
        "truediv": _divide,
        "floordiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        "mod": lambda a, b: torch.fmod(_tensor(a), b),
        **{name: getattr(operator, name) for name in ("add", "sub", "mul", "lshift", "rshift", "xor")},
        "and": operator.and_,
        "or": operator.or_,
    }
    comparisons = {name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")}

    def apply(operation: Callable[[Any, Any], torch.Tensor], left: Any, right: Any) -> Register:
        is_wide = isinstance(left, Int64) or isinstance(right, Int64)
        left, right = data_of(left), data_of(right)
        check_ranks(left, right)
        if is_wide:
            left, right = (
                x.long() if isinstance(x, torch.Tensor) and x.dtype == torch.int32 else x for x in (left, right)
            )
        return Register(operation(left, right))

    for name, operation in {**operations, **comparisons}.items():
        setattr(Register, f"__{name}__", lambda self, other, do=operation: apply(do, self, other))
    for name, operation in operations.items():
        setattr(Register, f"__r{name}__", lambda self, other, do=operation: apply(do, other, self))


_define_tensor_operators()


class PendingProduct:
    """What an asynchronous warpgroup_mma returns; only warpgroup_mma_wait makes it a tensor."""

    def __init__(self, number: int) -> None:
        self.number = number  # among the products of its partition
        self.value: torch.Tensor | None = None

    def finished(self) -> Register:
        """The product, after a wait that covers it."""
        assert self.value is not None
        return Register(self.value)

    def use(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Whatever else a kernel does with it."""
        raise Hazard("the result of a warpgroup_mma is used before a warpgroup_mma_wait that covers it")

    __getattr__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __getitem__ = use
