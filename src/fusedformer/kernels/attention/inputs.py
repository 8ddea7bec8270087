"""From what a caller gives to what the attention ops take: every check, and the one form that the kernels know."""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.reference import accumulate_dtype

MAX_HEAD_DIM = 512


@dataclass(frozen=True)
class Call:
    """One call of a public function: its name, and the names its tensors have there, for error messages."""

    function: str
    q: str = "q"
    k: str = "k"
    v: str = "v"
    mask: str = "mask"
    bias: str = "bias"

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.function}: {message}")


def check_qkv(call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless (B, Sq, H, D), (B, Sk, Hkv, D) and (B, Sk, Hkv, Dv) tensors fit together."""
    if not (q.dtype == k.dtype == v.dtype in library.DEVICE_DTYPES and q.device == k.device == v.device):
        _check_kind(call, q, k, v)
    check_shapes(call, q, k, v)


def check_shapes(call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
    """The part of `check_qkv` that is about shapes."""
    batch, _, heads, head_dim = q.shape
    k_batch, seqlen_k, kv_heads, k_head_dim = k.shape
    v_batch, v_seqlen, v_heads, v_head_dim = v.shape
    if k_batch != batch:
        raise _unequal(call, call.k, k_batch, call.q, batch, "batch size")
    if v_batch != k_batch:
        raise _unequal(call, call.v, v_batch, call.k, k_batch, "batch size")
    if v_seqlen != seqlen_k:
        raise _unequal(call, call.v, v_seqlen, call.k, seqlen_k, "length")
    if v_heads != kv_heads:
        raise _unequal(call, call.v, v_heads, call.k, kv_heads, "number of heads")
    if k_head_dim != head_dim:
        raise _unequal(call, call.k, k_head_dim, call.q, head_dim, "head dimension")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise call.error(f"{call.q} has head dimension {head_dim}, expected 1 to {MAX_HEAD_DIM}")
    if not 1 <= v_head_dim <= MAX_HEAD_DIM:
        raise call.error(f"{call.v} has head dimension {v_head_dim}, expected 1 to {MAX_HEAD_DIM}")
    if heads != kv_heads and (kv_heads == 0 or heads == 0 or heads % kv_heads):
        raise call.error(
            f"{call.q} has {heads} heads, {call.k} has {kv_heads}: query heads must be a multiple of key heads"
        )


def _check_kind(call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless all have one dtype that attention takes, and are on one device."""
    named = {call.q: q, call.k: k, call.v: v}
    library.check_dtype(call.function, **named)
    library.check_device(call.function, **named)
    if len({tensor.dtype for tensor in named.values()}) > 1:
        listed = ", ".join(f"{name} is {library.short(tensor.dtype)}" for name, tensor in named.items())
        raise call.error(f"{listed}: all must have one dtype")


def _unequal(call: Call, name: str, size: int, other: str, wanted: int, what: str) -> ValueError:
    return call.error(f"{name} has {what} {size}, {other} has {wanted}: they must be equal")


def check_results(call: Call, q: Tensor, v: Tensor, results: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
    """Raise ValueError unless `results` are like out, (B, Sq, H, Dv), and `rows` like its log-sum-exp, (B, H, Sq)."""
    batch, seqlen_q, heads, _ = q.shape
    library.check_device(call.function, **{call.q: q}, **results, **rows)
    for named, shape, dtype in (
        (results, (batch, seqlen_q, heads, v.shape[3]), q.dtype),
        (rows, (batch, heads, seqlen_q), accumulate_dtype(q.dtype)),
    ):
        for name, tensor in named.items():
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                given = f"{library.short(tensor.dtype)} of shape {tuple(tensor.shape)}"
                raise call.error(f"{name} is {given}, expected {library.short(dtype)} of shape {shape}")


def starts(call: Call, q: Tensor, **named: Tensor | None) -> Iterator[Tensor]:
    """The tensors, dense; ValueError unless both are int32 vectors of one length, on q's device."""
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    if len(given) == 1:
        raise call.error(f"{next(iter(given))} is given alone, expected both of {' and '.join(named)}")
    for name, tensor in given.items():
        library.check_tensor(call.function, name, tensor)
        if tensor.dtype != torch.int32 or tensor.dim() != 1 or len(tensor) < 2:
            shape = f"{library.short(tensor.dtype)} of shape {tuple(tensor.shape)}"
            raise call.error(f"{name} is {shape}, expected int32 of shape (sequences + 1,)")
    library.check_device(call.function, **{call.q: q}, **given)
    if len({len(tensor) for tensor in given.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(tensor)} elements" for name, tensor in given.items())
        raise call.error(f"{lengths}: they must have one more than there are sequences")
    return (tensor.contiguous() for tensor in given.values())


def pairwise(
    call: Call, name: str, tensor: Tensor | None, q: Tensor, k: Tensor, *, wants_bool: bool
) -> Tensor | None:  # fmt: skip
    """A mask, `wants_bool`, or a bias with four dimensions, broadcastable to (B, H, Sq, Sk)."""
    if tensor is None:
        return None
    library.check_tensor(call.function, name, tensor)
    library.check_device(call.function, **{call.q: q, call.k: k, name: tensor})
    if wants_bool != (tensor.dtype == torch.bool) or not (wants_bool or tensor.is_floating_point()):
        expected = "bool (True takes part)" if wants_bool else "floating point (added to the scores)"
        raise call.error(f"{name} is {library.short(tensor.dtype)}, expected {expected}")
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    # Not `size in (1, wanted)`: where `wanted` is a symbol of torch.compile, that is false though they are equal.
    fits = all(size == 1 or size == wanted for size, wanted in zip(reversed(tensor.shape), reversed(shape)))
    if tensor.dim() > 4 or not fits:
        raise call.error(f"{name} has shape {tuple(tensor.shape)}, which does not broadcast to {shape}")
    return tensor[(None,) * (4 - tensor.dim())]


def per_head(call: Call, name: str, tensor: Tensor | None, q: Tensor, shapes: Sequence[tuple[int, ...]]) -> Any:
    """`tensor` in float32 (float64 for float64) and dense, if it has one of `shapes`."""
    if tensor is None:
        return None
    library.check_tensor(call.function, name, tensor)
    library.check_device(call.function, **{call.q: q, name: tensor})
    # Size by size: `torch.compile` does not look for a tuple of sizes that it does not know among others.
    fits = [len(shape) == tensor.dim() and all(map(operator.eq, shape, tensor.shape)) for shape in shapes]
    if not any(fits) or not tensor.is_floating_point():
        expected = " or ".join(map(str, shapes))
        given = f"{library.short(tensor.dtype)} of shape {tuple(tensor.shape)}"
        raise call.error(f"{name} is {given}, expected floating point of shape {expected}")
    return tensor.to(accumulate_dtype(q.dtype)).contiguous()


def numbers(
    call: Call, head_dim: int, scale: float | None, softcap: float, dropout_p: float, window: Any, causal: bool
) -> tuple[float, float, float, int | None, int | None]:
    """scale, softcap, dropout_p and both sides of the window as the ops take them."""
    usual = 1 / math.sqrt(head_dim)
    # Most calls have nothing to check here: each look at a number costs time that a short attention does not take.
    if scale is None and window is None and type(softcap) is type(dropout_p) is float and softcap == dropout_p == 0:
        return usual, softcap, dropout_p, None, 0 if causal else None
    return (
        number(call, "scale", usual if scale is None else scale, -math.inf, math.inf),
        number(call, "softcap", softcap, 0, math.inf),
        number(call, "dropout_p", dropout_p, 0, 1, open_high=True),
        *window_sides(call, window, causal),
    )


def number(call: Call, name: str, value: Any, low: float, high: float, *, open_high: bool = False) -> float:
    """`value` as a float, if it is a number between `low` and `high` and finite."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Comparisons alone, for `torch.compile` traces these of a number that follows from a dynamic shape too.
    is_inside = is_number and low <= value <= high and -math.inf < value < math.inf
    if not is_inside or (open_high and value == high):
        bounds = "a finite number" if high == math.inf and low == -math.inf else f"{low:g} to {high:g}"
        raise call.error(f"{name} is {value!r}, expected {bounds}" + (f" (less than {high:g})" if open_high else ""))
    return float(value)


def window_sides(call: Call, window: Any, causal: bool) -> tuple[int | None, int | None]:
    """How many keys to the left and to the right of the one it faces a query sees; None for all of them."""
    if window is None:
        return None, (0 if causal else None)
    is_pair = isinstance(window, Sequence) and len(window) == 2
    if not is_pair or not all(side is None or (isinstance(side, int) and side >= -1) for side in window):
        raise call.error(f"window is {window!r}, expected two numbers of keys (left, right), None or -1 for all")
    left, right = (None if side is None or side == -1 else int(side) for side in window)
    if causal:
        right = 0 if right is None else min(right, 0)
    return left, right


def autocast(*tensors: Tensor) -> list[Tensor]:
    """Under `torch.autocast` what matrix products take there: the lower precision, but for float64."""
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return list(tensors)
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x.dtype == torch.float64 or not x.is_floating_point() else x.to(dtype) for x in tensors]
