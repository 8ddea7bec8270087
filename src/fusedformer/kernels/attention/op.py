"""Attention: out = softmax(score(q k^T)) v for every head, forward and backward, dense or packed.

Legend: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads, D head dimension of q and k, Dv
of v. FLOPs: forward 2 B H Sq Sk (D + Dv); backward 2.5 times that, and 3.5 as it is computed here, without atomics;
half of it when causal. Memory: the scores are never stored; backward needs q, k, v, out and a float32 for each query.
Checks: inputs.py. Device code: fwd_kernel.py, bwd_kernel.py (Triton), launched by launch.py. Definition: reference.py.
Further signatures: sdpa.py, flash_attn.py.
Source: Vaswani et al., "Attention Is All You Need", 2017; Dao, "FlashAttention-2", 2023.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.attention import aten, inputs, reference
from fusedformer.kernels.attention.extras import SCHEMA, Extras
from fusedformer.kernels.attention.fp8 import op as fp8
from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.reference import accumulate_dtype

LAYOUTS = ("bshd", "bhsd")
PACKED = "packed"
_ATTENTION, _BACKWARD = Call("attention"), Call("attention_backward")


@overload
def attention(q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = ..., **settings: Any) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **settings: Any
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **settings: Any
) -> Tensor | tuple[Tensor, Tensor]: ...
def attention(  # type: ignore[misc]  # the settings are written out below, once
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: str = "bshd",
    causal: bool = False,
    window: Sequence[int | None] | None = None,
    scale: float | None = None,
    descale: Sequence[Tensor] | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention: deterministic, differentiable twice, linear in memory on a GPU.

    Query heads may share key heads: with H = 8 and Hkv = 2, heads 0 to 3 use key head 0 (grouped-query attention;
    multi-query for Hkv = 1). The last query faces the last key; `causal` hides what comes after the key it faces:

        Sq = 3, Sk = 5       Sq = 5, Sk = 3                            window = (1, 0), Sq = Sk = 4
        x x x . .            . . .    a query that sees no key gives 0    x . . .
        x x x x .            . . .    and a log-sum-exp of -inf           x x . .
        x x x x x            x . .                                        . x x .
                             x x .                                        . . x x
                             x x x

    The score of query i and key j is cap(scale q_i k_j) + bias_ij - slope |i + Sk - Sq - j|. What hidden positions
    hold, even NaN, does not reach the result or the gradients; a bias of -inf hides too. Scores are float32: past 2^24
    neighbouring ones are further apart than a factor of e in the weights, and past 2^31 a GPU's result may be NaN.

    Args:
        q: (B, Sq, H, D), float32, float16 or bfloat16 (on the CPU float64 too), any strides, D from 1 to 512.
        k: (B, Sk, Hkv, D), of q's dtype and device.
        v: (B, Sk, Hkv, Dv), of q's dtype and device, Dv from 1 to 512.
        layout: "bshd" as above; "bhsd" for q (B, H, Sq, D), k (B, Hkv, Sk, D) and v. Both are read in place.
        causal: hide key j from query i where j > i + Sk - Sq.
        window: (left, right): hide key j unless i + Sk - Sq - left <= j <= i + Sk - Sq + right; None or -1: no bound.
        scale: factor of the scores; 1 / sqrt(D) if None.
        descale: of q, k and v in float8_e4m3fn, (B, H), (B, Hkv) and (B, Hkv), float32: what a head is multiplied by to
            give its values, as `quantize_fp8` returns it; one that is not positive gives NaN. The result is bfloat16,
            and has no gradient. Not with packed sequences.
        mask: bool, broadcastable to (B, H, Sq, Sk) whatever the layout; True takes part.
        bias: floating point, broadcastable to (B, H, Sq, Sk), added to the scores; differentiable.
        alibi_slopes: (H,) or (B, H), floating point; differentiable.
        softcap: cap(s) = softcap * tanh(s / softcap); 0.0 for none.
        sinks: (H,), floating point: the score of one more key for each head, whose value is 0; differentiable.
        dropout_p: probability, less than 1, with which a weight is dropped; the others grow by 1 / (1 - dropout_p).
        seed: (1,) int64 on q's device, of dropout: the same weights are dropped for the same seed, whatever the
            device; drawn from PyTorch's generator if None.
        cu_seqlens_q: (B + 1,) int32: packed sequences. q is (total, H, D), and sequence b has its rows
            cu_seqlens_q[b] to cu_seqlens_q[b + 1]; rows after the last give 0. Not with `mask`, `bias` or `layout`.
        cu_seqlens_k: (B + 1,) int32: the same for k (total, Hkv, D) and v (total, Hkv, Dv). Values are not checked:
            that would wait for the GPU.
        return_lse: return the log-sum-exp of each query's scores too.

    Returns:
        Tensor like q with Dv for D; with `return_lse` a pair of it and a (B, H, Sq), packed (H, total), float32 tensor
        (float64 for float64), natural logarithm, differentiable.

    Raises:
        ValueError: a shape, head count, dtype, device or setting does not fit, or two do not go together.
        NotImplementedError: a gradient is asked for where `descale` is given.

    Source: Dao, "FlashAttention-2", 2023; float8: Shah et al., "FlashAttention-3", 2024.
    """
    layout = _layout(_ATTENTION, layout, cu_seqlens_q, cu_seqlens_k, mask, bias)
    q = _to_bshd(_ATTENTION, "q", q, layout)
    k = _to_bshd(_ATTENTION, "k", k, layout)
    v = _to_bshd(_ATTENTION, "v", v, layout)
    out, lse = attend(
        _ATTENTION, q, k, v, descale=descale, mask=mask, bias=bias, alibi_slopes=alibi_slopes, sinks=sinks, seed=seed,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        causal=causal, window=window, scale=scale, softcap=softcap, dropout_p=dropout_p,
    )  # fmt: skip
    out, lse = _from_bshd(out, layout), lse.squeeze(0) if layout == PACKED else lse
    return (out, lse) if return_lse else out


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    dlse: Tensor | None = None,
    layout: str = "bshd",
    causal: bool = False,
    window: Sequence[int | None] | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of attention whose result is given: what is left to do where keys are spread over several devices.

    `out` and `lse` may be those of more keys than k and v hold: the weights are exp(score - lse). With sinks in `lse`
    nothing changes.

    Args:
        dout: gradient of the result, of out's shape and dtype.
        q: as in `attention`.
        k: as in `attention`; a part of the keys.
        v: as in `attention`; the values of these keys.
        out: the result, of all keys.
        lse: (B, H, Sq), packed (H, total), float32: the log-sum-exp, of all keys.
        dlse: gradient of lse; None for 0.
        layout: as in `attention`.
        causal: as in `attention`.
        window: as in `attention`.
        scale: as in `attention`.
        mask: as in `attention`.
        bias: as in `attention`.
        alibi_slopes: as in `attention`.
        softcap: as in `attention`.
        dropout_p: as in `attention`.
        seed: the one that the forward took; required with dropout.
        cu_seqlens_q: as in `attention`.
        cu_seqlens_k: as in `attention`.

    Returns:
        dq (the share of these keys), dk and dv, contiguous but for the layout, in q's dtype.

    Raises:
        ValueError: as `attention`, or the shape or dtype of dout, out, lse or dlse does not fit.
    """
    call = _BACKWARD
    layout = _layout(call, layout, cu_seqlens_q, cu_seqlens_k, mask, bias)
    named = {"q": q, "k": k, "v": v, "dout": dout, "out": out}
    q, k, v, dout, out = (_to_bshd(call, name, x, layout) for name, x in named.items())
    inputs.check_qkv(call, q, k, v)
    if dropout_p and seed is None:
        raise call.error(f"dropout_p is {dropout_p} and seed is None, expected the seed of the forward")
    rows = {"lse": lse} if dlse is None else {"lse": lse, "dlse": dlse}
    rows = {name: x.unsqueeze(0) if layout == PACKED else x for name, x in rows.items()}
    inputs.check_results(call, q, v, {"dout": dout, "out": out}, rows)
    settings = prepare(
        call, q, k, mask=mask, bias=bias, alibi_slopes=alibi_slopes, seed=seed,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        causal=causal, window=window, scale=scale, softcap=softcap, dropout_p=dropout_p,
    )  # fmt: skip
    wanted = [True, True, False, False, False]
    gradients = attention_bwd(dout, rows.get("dlse"), out, rows["lse"], wanted, q, k, v, *settings)
    dq, dk, dv = (_from_bshd(x, layout) for x in gradients[:3])
    return dq, dk, dv


def _layout(call: Call, layout: str, *packed_and_pairs: Tensor | None) -> str:
    if layout not in LAYOUTS:
        raise call.error(f"layout is {layout!r}, expected one of {LAYOUTS}")
    cu_seqlens_q, cu_seqlens_k, mask, bias = packed_and_pairs
    if cu_seqlens_q is None and cu_seqlens_k is None:
        return layout
    if layout != "bshd":
        raise call.error(f"layout is {layout!r} for packed sequences, expected 'bshd'")
    if mask is not None or bias is not None:
        raise call.error(f"{'bias' if mask is None else 'mask'} is given for packed sequences, which have none")
    return PACKED


def _to_bshd(call: Call, name: str, x: Tensor, layout: str) -> Tensor:
    """A view of (B, S, H, D); packed sequences are one batch."""
    if not isinstance(x, Tensor):
        library.check_tensor(call.function, name, x)
    rank = 3 if layout == PACKED else 4
    if x.dim() != rank:
        raise call.error(f"{name} has shape {tuple(x.shape)}, expected {rank} dimensions ({layout})")
    return x.unsqueeze(0) if layout == PACKED else x.transpose(1, 2) if layout == "bhsd" else x


def _from_bshd(x: Tensor, layout: str) -> Tensor:
    return x.squeeze(0) if layout == PACKED else x.transpose(1, 2) if layout == "bhsd" else x


def attend(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *, descale: Sequence[Tensor] | None = None, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Check the arguments of a public function and compute: what all such functions have in common.

    Args:
        call: the function, and the names of its arguments.
        q: (B, Sq, H, D), or packed (1, total, H, D).
        k: (B, Sk, Hkv, D), or packed as q.
        v: (B, Sk, Hkv, Dv), or packed as q.
        descale: of float8 tensors, as in `attention`.
        settings: see `prepare`.

    Returns:
        out (B, Sq, H, Dv) and the log-sum-exp (B, H, Sq).

    Raises:
        ValueError: as `attention`.
    """
    if descale is not None:
        if settings["cu_seqlens_q"] is not None:
            raise call.error("descale is given for packed sequences, expected none")
        descales = fp8.check(call, q, k, v, descale)
        return fp8.attention_fp8_fwd(q, k, v, *descales, *prepare(call, q, k, **settings))
    q, k, v = inputs.autocast(q, k, v)
    inputs.check_qkv(call, q, k, v)
    return attention_fwd(q, k, v, *prepare(call, q, k, **settings))


def prepare(
    call: Call, q: Tensor, k: Tensor, *,
    mask: Tensor | None = None, bias: Tensor | None = None, alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None, seed: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    causal: bool = False, window: Sequence[int | None] | None = None, scale: float | None = None,
    softcap: float = 0.0, dropout_p: float = 0.0, bottom_right: bool = True,
) -> tuple[Any, ...]:  # fmt: skip
    """Settings of `attention`, checked, as the ops take them after q, k and v: see `extras.Extras`.

    Without `bottom_right` the first query faces the first key, not the last the last.
    """
    numbers = inputs.numbers(call, q.shape[3], scale, softcap, dropout_p, window, causal)
    if cu_seqlens_q is not None or cu_seqlens_k is not None:
        cu_seqlens_q, cu_seqlens_k = inputs.starts(call, q, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    heads = q.shape[2]
    if alibi_slopes is not None:
        sequences = q.shape[0] if cu_seqlens_q is None else len(cu_seqlens_q) - 1
        alibi_slopes = inputs.per_head(call, "alibi_slopes", alibi_slopes, q, [(heads,), (sequences, heads)])
        alibi_slopes = alibi_slopes.expand(sequences, heads)
    if sinks is not None:
        sinks = inputs.per_head(call, "sinks", sinks, q, [(heads,)])
    return (
        None if mask is None else inputs.pairwise(call, call.mask, mask, q, k, wants_bool=True),
        None if bias is None else inputs.pairwise(call, call.bias, bias, q, k, wants_bool=False),
        alibi_slopes,
        sinks,
        library.random_seed(call.function, call.q, q, seed, numbers[2]),
        cu_seqlens_q,
        cu_seqlens_k,
        *numbers,
        bottom_right,
    )


def _fwd_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=accumulate_dtype(q.dtype))
    return q.new_empty((*q.shape[:-1], v.shape[-1])), lse


def _bwd_fake(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, wanted: list[bool],
    q: Tensor, k: Tensor, v: Tensor, *settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    extras = Extras(*settings)
    flags = (wanted[0], wanted[1], wanted[1], *wanted[2:])
    tensors = (q, k, v, extras.bias, extras.slopes, extras.sinks)
    return tuple(
        q.new_empty(tensor.shape, dtype=tensor.dtype) if flag and tensor is not None else q.new_empty(0)
        for flag, tensor in zip(flags, tensors)
    )


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.settings = inputs[10:]
    ctx.save_for_backward(*output, *inputs[:10])
    ctx.set_materialize_grads(False)  # the log-sum-exp has no gradient as a rule


def _fwd_gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1] or needs[2], needs[4], needs[5], needs[6]]
    gradients = attention_bwd(dout, dlse, out, lse, wanted, *tensors, *ctx.settings)
    flags = (*needs[:3], *needs[4:7])
    dq, dk, dv, *others = (gradient if flag else None for gradient, flag in zip(gradients, flags))
    return dq, dk, dv, None, *others, *(None,) * 9


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dout, dlse, _, _, ctx.wanted, *rest = inputs
    ctx.save_for_backward(dout, dlse, *rest[:10])
    ctx.settings = rest[10:]


def _bwd_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Derivative of the backward; out and lse are functions of the inputs, so their share is taken through these."""
    names = ("dout", "dlse", "q", "k", "v", "mask", "bias", "slopes", "sinks", "seed", "starts_q", "starts_k")
    given = dict(zip(names, ctx.saved_tensors))
    variable = [name for name in names if given[name] is not None and given[name].is_floating_point()]

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        dout, dlse, *inputs = (given | dict(zip(variable, tensors))).values()
        out, lse = reference.attention_fwd(*inputs, *ctx.settings, guard=False)
        return reference.attention_bwd(
            dout, dlse, out, lse, ctx.wanted, *inputs, *ctx.settings, guard=False
        )  # fmt: skip

    found = dict(zip(variable, library.vjp(backward, [given[name] for name in variable], grads)))
    dout, dlse, *rest = (found.get(name) for name in names)
    return dout, dlse, None, None, None, *rest, *(None,) * 6


_launch = library.triton_launchers("fusedformer.kernels.attention.launch")
attention_fwd = library.define(
    f"attention_fwd(Tensor q, Tensor k, Tensor v, {SCHEMA}) -> (Tensor, Tensor)",
    fallback=aten.attention_fwd,
    fake=_fwd_fake,
    launch=_launch and _launch.attention_fwd,
)
attention_bwd = library.define(
    "attention_bwd(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, bool[] wanted, Tensor q, Tensor k, Tensor v,"
    f" {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fallback=aten.attention_bwd,
    fake=_bwd_fake,
    launch=_launch and _launch.attention_bwd,
)
library.differentiate(
    "attention_fwd", _fwd_gradient, _save_fwd, functools.partial(reference.attention_fwd, guard=False)
)
library.differentiate(
    "attention_bwd", _bwd_gradient, _save_bwd, functools.partial(reference.attention_bwd, guard=False)
)
