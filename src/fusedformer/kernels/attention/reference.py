"""Attention in plain PyTorch: the definition of its ops, the oracle of their tests (in float64) and the CPU path.

Legend: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads, G = H / Hkv query heads that share
a key head, D head dimension of q and k, Dv of v. Scores are (B, Hkv, G Sq, Sk): the query heads of a group are further
rows of one matrix, so no key is repeated, and dk and dv are summed over the group by the matmul itself.

Everything is made of differentiable PyTorch. With `guard=False` hidden NaN is not kept out, and nothing branches on
data, so that a gradient of these functions can be traced; the exception are packed sequences, whose lengths are read.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.philox import philox
from fusedformer.kernels.reference import accumulate_dtype

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, *settings: Any, guard: bool = True) -> tuple[Tensor, Tensor]:
    """out, (B, Sq, H, Dv), and the log-sum-exp of each row of scores, (B, H, Sq); for `settings` see `Extras`.

    A query that sees no key gets 0 and -inf, or the sink.
    """
    extras = Extras(*settings)
    if not extras.is_packed:
        return _fwd(q, k, v, extras, 0, guard)
    return packed_fwd(lambda q, k, v, own, index: _fwd(q, k, v, own, index, guard), q, k, v, extras)


def packed_fwd(
    fwd_of_one: Callable[[Tensor, Tensor, Tensor, Extras, int], tuple[Tensor, Tensor]],
    q: Tensor, k: Tensor, v: Tensor, extras: Extras,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention_fwd` of packed sequences, by a function of one: its q, k and v, the extras of it alone, its number."""
    results = [
        fwd_of_one(q[:, queries], k[:, keys], v[:, keys], own, index)
        for index, queries, keys, own in _sequences(extras)
    ]
    tail = q.shape[1] - sum(out.shape[1] for out, _ in results)
    out = torch.cat([*(out for out, _ in results), q.new_zeros((1, tail, q.shape[2], v.shape[3]))], 1)
    lse = torch.cat([*(lse for _, lse in results), results[0][1].new_zeros((1, q.shape[2], tail))], 2)
    return out, lse


def attention_bwd(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, wanted: list[bool],
    q: Tensor, k: Tensor, v: Tensor, *settings: Any, guard: bool = True,
) -> Gradients:  # fmt: skip
    """dq, dk, dv, dbias, dslopes, dsinks of attention_fwd, empty where not `wanted` (dq; dk and dv; dbias; ...)."""
    extras = Extras(*settings)
    if not extras.is_packed:
        return _only(wanted, _bwd(dout, dlse, out, lse, q, k, v, extras, 0, guard))
    parts = []
    for index, queries, keys, own in _sequences(extras):
        of_lse = None if dlse is None else dlse[:, :, queries]
        rows = dout[:, queries], of_lse, out[:, queries], lse[:, :, queries]
        parts.append(_bwd(*rows, q[:, queries], k[:, keys], v[:, keys], own, index, guard))
    dq, dk, dv = (
        torch.cat([*(part[n] for part in parts), whole[:, sum(part[n].shape[1] for part in parts) :] * 0], 1)
        for n, whole in enumerate((q, k, v))
    )
    dslopes = torch.cat([part[4] for part in parts]) if extras.slopes is not None else parts[0][4]
    dsinks = torch.stack([part[5] for part in parts]).sum(0)
    return _only(wanted, (dq, dk, dv, parts[0][3], dslopes, dsinks))


def _sequences(extras: Extras) -> Iterator[tuple[int, slice, slice, Extras]]:
    """Of each packed sequence: its number, its rows of q, its rows of k, and what holds for it alone."""
    assert extras.starts_q is not None  # they are packed
    assert extras.starts_k is not None
    starts_q, starts_k = extras.starts_q.tolist(), extras.starts_k.tolist()
    for index in range(len(starts_q) - 1):
        slopes = None if extras.slopes is None else extras.slopes[index : index + 1]
        own = extras._replace(starts_q=None, starts_k=None, slopes=slopes)
        yield index, slice(*starts_q[index : index + 2]), slice(*starts_k[index : index + 2]), own


def _only(wanted: list[bool], gradients: Gradients) -> Gradients:
    dq, dk, dv, *others = gradients
    flags = (wanted[0], wanted[1], wanted[1], *wanted[2:])
    chosen = [gradient if flag else dq.new_empty(0) for gradient, flag in zip((dq, dk, dv, *others), flags)]
    return tuple(chosen)  # type: ignore[return-value]


def _fwd(q: Tensor, k: Tensor, v: Tensor, extras: Extras, sequence: int, guard: bool) -> tuple[Tensor, Tensor]:
    scores, visible, _ = _scores(q, k, extras)
    peak = scores.detach().amax(-1, keepdim=True) if k.shape[1] else scores.new_zeros((*scores.shape[:-1], 1))
    sinks = None if extras.sinks is None else _of_heads(extras.sinks.to(scores.dtype), q, k)
    if sinks is not None:
        peak = peak.maximum(sinks.detach())
    # -inf - -inf is NaN: with a finite peak instead, a query that sees no key gets weights of 0.
    peak = peak.clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - peak).exp()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - peak).exp()
    sees_none = total == 0
    total = total.masked_fill(sees_none, 1)
    keep = _kept(q, k, extras, sequence)
    dropped = weights if keep is None else weights * keep
    out = _matmul(dropped, _key_rows(v), visible, guard) / total
    lse = (peak + total.log()).masked_fill(sees_none, -math.inf)
    return _like_queries(out, q), lse.reshape(q.shape[0], q.shape[2], q.shape[1])


def _bwd(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor,
    q: Tensor, k: Tensor, v: Tensor, extras: Extras, sequence: int, guard: bool,
) -> Gradients:  # fmt: skip
    scores, visible, derivative = _scores(q, k, extras)
    q_rows, k_rows, v_rows, dout_rows = _query_rows(q, k), _key_rows(k), _key_rows(v), _query_rows(dout, k)
    delta = (dout_rows * _query_rows(out, k)).sum(-1, keepdim=True)
    if dlse is not None:
        delta = delta - dlse.reshape(delta.shape)
    # exp(-inf - inf) is 0, where -inf - -inf would be NaN.
    shift = lse.masked_fill(lse == -math.inf, math.inf).reshape(delta.shape)
    p = (scores - shift).exp()
    dp = dout_rows @ v_rows.mT
    keep = _kept(q, k, extras, sequence)
    dropped, dp = (p, dp) if keep is None else (p * keep, dp * keep)
    dscores = p * (dp - delta)
    if visible is not None:
        # A NaN in q, k, v or dout reaches hidden places of its row or column by the two products above.
        dropped, dscores = dropped.masked_fill(~visible, 0), dscores.masked_fill(~visible, 0)
    visible_T = None if visible is None else visible.mT
    dproducts = dscores if derivative is None else dscores * derivative
    dq = _matmul(dproducts, k_rows, visible, guard) * extras.scale
    dk = _matmul(dproducts.mT, q_rows, visible_T, guard) * extras.scale
    dv = _matmul(dropped.mT, dout_rows, visible_T, guard)
    gradients = _like_queries(dq, q), _like_keys(dk, k), _like_keys(dv, v)
    return *gradients, *_extra_gradients(dscores, delta, lse, q, k, extras)


def _extra_gradients(
    dscores: Tensor, delta: Tensor, lse: Tensor, q: Tensor, k: Tensor, extras: Extras
) -> tuple[Tensor, Tensor, Tensor]:
    """dbias, dslopes and dsinks, empty where there is none of it."""
    dbias = dslopes = dsinks = dscores.new_empty(0)
    by_head = dscores.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if extras.bias is not None:
        dbias = by_head.sum_to_size(extras.bias.shape).to(extras.bias.dtype)
    if extras.slopes is not None:
        dslopes = -(by_head * _distance(q, k, extras)).sum((2, 3))
    if extras.sinks is not None:
        dsinks = extras.sinks_gradient(lse, delta.reshape(lse.shape))
    return dbias, dslopes, dsinks


class _Scores(NamedTuple):
    scores: Tensor  # -inf where hidden
    visible: Tensor | None  # None for all
    derivative: Tensor | None  # of the scores by the scaled products; None for 1


def _scores(q: Tensor, k: Tensor, extras: Extras) -> _Scores:
    scores = (_query_rows(q, k) * extras.scale) @ _key_rows(k).mT
    derivative = None
    if extras.softcap:
        bounded = torch.tanh(scores / extras.softcap)
        scores, derivative = bounded * extras.softcap, 1 - bounded.square()
    added = added_to_scores(q, k, extras)
    if added is not None:
        scores = scores + _of_pairs(added, q, k)
    visible = visible_pairs(q, k, extras)
    visible = None if visible is None else _of_pairs(visible, q, k)
    return _Scores(scores if visible is None else scores.masked_fill(~visible, -math.inf), visible, derivative)


def _positions(q: Tensor, k: Tensor, extras: Extras) -> Tensor:
    """How far after the key that it faces each query stands of each key, negative before it: (Sq, Sk)."""
    diagonal = k.shape[1] - q.shape[1] if extras.bottom_right else 0
    rows = torch.arange(q.shape[1], device=q.device)[:, None] + diagonal
    return rows - torch.arange(k.shape[1], device=q.device)


def _distance(q: Tensor, k: Tensor, extras: Extras) -> Tensor:
    return _positions(q, k, extras).abs().to(accumulate_dtype(q.dtype))


def added_to_scores(q: Tensor, k: Tensor, extras: Extras) -> Tensor | None:
    """Bias and ALiBi, broadcastable to (B, H, Sq, Sk), in the dtype of the scores; None for neither."""
    wide = accumulate_dtype(q.dtype)
    added = None if extras.bias is None else extras.bias.to(wide)
    if extras.slopes is None:
        return added
    distance = extras.slopes.to(wide)[:, :, None, None] * _distance(q, k, extras)
    return -distance if added is None else added - distance


def visible_pairs(q: Tensor, k: Tensor, extras: Extras) -> Tensor | None:
    """Which scores count, broadcastable to (B, H, Sq, Sk); None for all."""
    conditions = [] if extras.mask is None else [extras.mask]
    if extras.left is not None:
        conditions.append(_positions(q, k, extras) <= extras.left)
    if extras.right is not None:
        conditions.append(_positions(q, k, extras) >= -extras.right)
    if extras.bias is not None:
        conditions.append(extras.bias.detach() != -math.inf)
    if not conditions:
        return None
    visible = conditions[0]
    for condition in conditions[1:]:
        visible = visible & condition
    return visible[(None,) * (4 - visible.dim())]


def _kept(q: Tensor, k: Tensor, extras: Extras, sequence: int) -> Tensor | None:
    """What dropout multiplies weights by, 0 or 1 / (1 - dropout_p); None without it."""
    if extras.seed is None:
        return None
    (batch, seqlen_q, heads, _), seqlen_k, device = q.shape, k.shape[1], q.device
    pairs = torch.arange(batch * heads, device=device) + sequence * heads
    random = philox(
        extras.seed,
        torch.arange(seqlen_k, device=device),
        torch.arange(seqlen_q, device=device)[:, None],
        pairs.view(batch, heads, 1, 1),
    )
    # In float32, as on a GPU, whatever the scores are.
    keep = (random >> 8).float() * 2.0**-24 >= torch.tensor(extras.dropout_p, dtype=torch.float32)
    return _of_pairs(keep, q, k).to(accumulate_dtype(q.dtype)) / (1 - extras.dropout_p)


def _of_pairs(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Broadcastable to (B, H, Sq, Sk) -> broadcastable to (B, Hkv, G Sq, Sk)."""
    x = x[(None,) * (4 - x.dim())]
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads == kv_heads:
        return x
    x = x.expand(q.shape[0], heads, q.shape[1], k.shape[1])
    return x.reshape(q.shape[0], kv_heads, heads // max(1, kv_heads) * q.shape[1], k.shape[1])


def _of_heads(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """(H,) -> (B, Hkv, G Sq, 1)."""
    rows = x[None, :, None].expand(q.shape[0], q.shape[2], q.shape[1])
    return rows.reshape(q.shape[0], k.shape[2], -1, 1)


def _query_rows(x: Tensor, k: Tensor) -> Tensor:
    """(B, Sq, H, D) -> (B, Hkv, G Sq, D)."""
    batch, seqlen_q, heads, head_dim = x.shape
    rows = x.to(accumulate_dtype(x.dtype)).transpose(1, 2)
    return rows.reshape(batch, k.shape[2], heads // max(1, k.shape[2]) * seqlen_q, head_dim)


def _key_rows(x: Tensor) -> Tensor:
    """(B, Sk, Hkv, D) -> (B, Hkv, Sk, D)."""
    return x.to(accumulate_dtype(x.dtype)).transpose(1, 2)


def _like_queries(rows: Tensor, q: Tensor) -> Tensor:
    """(B, Hkv, G Sq, D) -> (B, Sq, H, D), in q's dtype."""
    batch, seqlen_q, heads, _ = q.shape
    return rows.reshape(batch, heads, seqlen_q, rows.shape[-1]).transpose(1, 2).to(q.dtype).contiguous()


def _like_keys(rows: Tensor, k: Tensor) -> Tensor:
    """(B, Hkv, Sk, D) -> (B, Sk, Hkv, D), in k's dtype."""
    return rows.transpose(1, 2).to(k.dtype).contiguous()


def _matmul(weights: Tensor, values: Tensor, visible: Tensor | None, guard: bool) -> Tensor:
    """weights @ values without the products of a hidden weight, which is 0, and a value that is NaN or infinite."""
    if visible is None or not guard or values.isfinite().all():
        return weights @ values
    finite = values.isfinite()
    product = weights @ values.masked_fill(~finite, 0)
    special = values.masked_fill(finite, 0)
    visible = visible.expand(weights.shape)
    for index in (~finite).any(-1).flatten(0, -2).any(0).nonzero().flatten().tolist():
        counted = visible[..., index, None] & (special[..., index, None, :] != 0)
        product += torch.where(counted, weights[..., index, None] * special[..., index, None, :], 0)
    return product
