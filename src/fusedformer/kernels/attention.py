"""Attention: out = softmax(scale q k^T) v for every head, forward and backward.

Legend: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads, D head dimension.
FLOPs: forward 4 B H Sq Sk D; backward 10, and 14 as it is computed here, without atomics; half of it when causal.
Memory: the scores are never stored; backward needs q, k, v, out and one float32 for each query of each head.
Device code: attention_fwd_kernel.py, attention_bwd_kernel.py (Triton). Definition: attention_reference.py.
Source: Vaswani et al., "Attention Is All You Need", 2017; Dao, "FlashAttention-2", 2023.
"""

import importlib.util
import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fusedformer.kernels import aten, attention_reference, library
from fusedformer.kernels.reference import accumulate_dtype

LAYOUTS = ("bshd", "bhsd")
MAX_HEAD_DIM = 256


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: str = ...,
    causal: bool = ...,
    scale: float | None = ...,
    mask: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: str = ...,
    causal: bool = ...,
    scale: float | None = ...,
    mask: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: str = "bshd",
    causal: bool = False,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention: deterministic, differentiable twice, linear in memory on a GPU.

    Query heads may share key heads: with H = 8 and Hkv = 2, heads 0 to 3 use key head 0 (grouped-query attention;
    multi-query for Hkv = 1). `causal` aligns the last query with the last key:

        Sq = 3, Sk = 5       Sq = 5, Sk = 3
        x x x . .            . . .    a query that sees no key gives 0,
        x x x x .            . . .    and a log-sum-exp of -inf
        x x x x x            x . .
                             x x .
                             x x x

    Whatever hidden positions hold, even NaN, does not reach the result or the gradients. Scores are float32: past 2^24
    neighbouring ones are further apart than a factor of e in the weights, and past 2^31 a GPU's result may be NaN.

    Args:
        q: (B, Sq, H, D), float32, float16 or bfloat16 (on the CPU float64 too), any strides, D from 1 to 256.
        k: (B, Sk, Hkv, D), of q's dtype and device.
        v: (B, Sk, Hkv, D), of q's dtype and device.
        layout: "bshd" as above; "bhsd" for q (B, H, Sq, D) and k, v (B, Hkv, Sk, D). Both are read in place.
        causal: hide key j from query i where j > i + Sk - Sq.
        scale: factor of the scores; 1 / sqrt(D) if None.
        mask: bool, broadcastable to (B, H, Sq, Sk) whatever the layout; True takes part.
        return_lse: return the log-sum-exp of each query's scores too.

    Returns:
        Tensor of q's shape and dtype; with `return_lse` a pair of it and a (B, H, Sq) float32 tensor (float64 for
        float64), natural logarithm, differentiable.

    Raises:
        ValueError: a shape, head count, dtype, device, layout or scale does not fit.

    Source: Dao, "FlashAttention-2", 2023.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"attention: layout is {layout!r}, expected one of {LAYOUTS}")
    named = {"q": q, "k": k, "v": v}
    for name, tensor in named.items():
        library.check_tensor("attention", name, tensor)
        if tensor.dim() != 4:
            raise ValueError(f"attention: {name} has shape {tuple(tensor.shape)}, expected 4 dimensions ({layout})")
    if layout == "bhsd":
        named = {name: tensor.transpose(1, 2) for name, tensor in named.items()}
    out, lse = attend("attention", named, mask, scale, causal, bottom_right=True)
    if layout == "bhsd":
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


def attend(
    function: str,
    named: dict[str, Tensor],
    mask: Tensor | None,
    scale: float | None,
    causal: bool,
    *,
    bottom_right: bool,
    mask_name: str = "mask",
) -> tuple[Tensor, Tensor]:
    """Check the arguments of public function `function` and compute: what all such functions have in common.

    Args:
        function: name for error messages.
        named: q, k and v, in the layout of `attention`, by their names in error messages.
        mask: see `attention`.
        scale: see `attention`.
        causal: see `attention`.
        bottom_right: align the last query with the last key when causal, not the first with the first.
        mask_name: name of `mask` in error messages.

    Returns:
        out (B, Sq, H, D) and the log-sum-exp (B, H, Sq).

    Raises:
        ValueError: as `attention`.
    """
    _check_kinds(function, named)
    _check_sizes(function, named)
    q, k, v = named.values()
    if mask is not None:
        _check_mask(function, mask_name, mask, named)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    elif not math.isfinite(scale):
        raise ValueError(f"{function}: scale is {scale}, expected a finite number")
    diagonal = k.shape[1] - q.shape[1] if bottom_right else 0
    return torch.ops.fusedformer.attention_fwd(q, k, v, mask, scale, causal, diagonal)


def _check_kinds(function: str, named: dict[str, Tensor]) -> None:
    library.check_dtype(function, **named)
    library.check_device(function, **named)
    if len({tensor.dtype for tensor in named.values()}) > 1:
        listed = ", ".join(f"{name} is {library.short(tensor.dtype)}" for name, tensor in named.items())
        raise ValueError(f"{function}: {listed}: all must have one dtype")


def _check_sizes(function: str, named: dict[str, Tensor]) -> None:
    (q_name, q), (k_name, k), (v_name, v) = named.items()
    for name, size, other, wanted, what in (
        (k_name, k.shape[0], q_name, q.shape[0], "batch size"),
        (v_name, v.shape[0], k_name, k.shape[0], "batch size"),
        (v_name, v.shape[1], k_name, k.shape[1], "length"),
        (v_name, v.shape[2], k_name, k.shape[2], "number of heads"),
        (k_name, k.shape[3], q_name, q.shape[3], "head dimension"),
        (v_name, v.shape[3], k_name, k.shape[3], "head dimension"),
    ):
        if size != wanted:
            raise ValueError(f"{function}: {name} has {what} {size}, {other} has {wanted}: they must be equal")
    if not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(f"{function}: {q_name} has head dimension {q.shape[3]}, expected 1 to {MAX_HEAD_DIM}")
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads != kv_heads and (kv_heads == 0 or heads == 0 or heads % kv_heads):
        names = f"{q_name} has {heads} heads, {k_name} has {kv_heads}"
        raise ValueError(f"{function}: {names}: query heads must be a multiple of key heads")


def _check_mask(function: str, name: str, mask: Tensor, named: dict[str, Tensor]) -> None:
    library.check_tensor(function, name, mask)
    library.check_device(function, **named, **{name: mask})
    if mask.dtype != torch.bool:
        raise ValueError(f"{function}: {name} is {library.short(mask.dtype)}, expected bool (True takes part)")
    q, k, _ = named.values()
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    fits = all(size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(shape)))
    if mask.dim() > 4 or not fits:
        raise ValueError(f"{function}: {name} has shape {tuple(mask.shape)}, which does not broadcast to {shape}")


def _fwd_fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool, diagonal: int
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=accumulate_dtype(q.dtype))
    return q.new_empty(q.shape), lse


def _bwd_fake(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, mask, *output)
    ctx.set_materialize_grads(False)  # the log-sum-exp has no gradient as a rule


def _fwd_gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, mask, out, lse = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    gradients = torch.ops.fusedformer.attention_bwd(dout, dlse, q, k, v, mask, out, lse, *ctx.settings)
    return *gradients, None, None, None, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dout, dlse, q, k, v, mask, _, _, *ctx.settings = inputs
    ctx.save_for_backward(dout, dlse, q, k, v, mask)


def _bwd_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Derivative of the backward; out and lse are functions of q, k and v, so their share is taken through these."""
    dout, dlse, q, k, v, mask = ctx.saved_tensors

    def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *dlse: Tensor) -> tuple[Tensor, ...]:
        out, lse = attention_reference.attention_fwd(q, k, v, mask, *ctx.settings, guard=False)
        given = dlse[0] if dlse else None
        return attention_reference.attention_bwd(
            dout, given, q, k, v, mask, out, lse, *ctx.settings, guard=False
        )  # fmt: skip

    inputs = (dout, q, k, v) if dlse is None else (dout, q, k, v, dlse)
    d_dout, d_q, d_k, d_v, *d_dlse = library.vjp(backward, inputs, grads)
    return d_dout, d_dlse[0] if d_dlse else None, d_q, d_k, d_v, None, None, None, None, None, None


def _launchers() -> Any:
    """The module of Triton launchers; None where there is no Triton, and PyTorch computes on every device."""
    if importlib.util.find_spec("triton") is None:
        return None
    from fusedformer.kernels import attention_launch

    return attention_launch


_launch = _launchers()
library.define(
    "attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool causal, SymInt diagonal)"
    " -> (Tensor, Tensor)",
    fallback=aten.attention_fwd,
    fake=_fwd_fake,
    launch=_launch and _launch.attention_fwd,
)
library.define(
    "attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse,"
    " float scale, bool causal, SymInt diagonal) -> (Tensor, Tensor, Tensor)",
    fallback=aten.attention_bwd,
    fake=_bwd_fake,
    launch=_launch and _launch.attention_bwd,
)
library.differentiate("attention_fwd", _fwd_gradient, _save_fwd)
library.differentiate("attention_bwd", _bwd_gradient, _save_bwd)
