"""Attention in plain PyTorch: the definition of its ops, the oracle of their tests (in float64) and the CPU path.

Legend: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads, G = H / Hkv query heads that share
a key head, D head dimension. Scores are (B, Hkv, G Sq, Sk): the query heads of a group are further rows of one matrix,
so no key is repeated, and dk and dv are summed over the group by the matmul itself.

Everything is made of differentiable PyTorch. With `guard=False` hidden NaN is not kept out, and nothing branches on
data, so that a gradient of these functions can be traced.
"""

import math

import torch
from torch import Tensor

from fusedformer.kernels.reference import accumulate_dtype


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool, diagonal: int,
    *, guard: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out = softmax(scale q k^T) v, (B, Sq, H, D), and the log-sum-exp of each row of scores, (B, H, Sq).

    A query that sees no key gets 0 and -inf.
    """
    visible = _visible(q, k, mask, causal, diagonal)
    scores = _scores(q, k, visible, scale)
    peak = scores.detach().amax(-1, keepdim=True) if k.shape[1] else scores.new_zeros((*scores.shape[:-1], 1))
    # -inf - -inf is NaN: with a finite peak instead, a query that sees no key gets weights of 0.
    peak = peak.clamp(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(peak).exp_()
    total = weights.sum(-1, keepdim=True)
    sees_none = total == 0
    total = total.masked_fill(sees_none, 1)
    out = _matmul(weights, _key_rows(v), visible, guard) / total
    lse = (peak + total.log()).masked_fill(sees_none, -math.inf)
    return _like_queries(out, q), lse.reshape(q.shape[0], q.shape[2], q.shape[1])


def attention_bwd(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    scale: float, causal: bool, diagonal: int, *, guard: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv of attention_fwd; `dlse` is the gradient of the log-sum-exp, None for 0."""
    visible = _visible(q, k, mask, causal, diagonal)
    q_rows, k_rows, v_rows, dout_rows = _query_rows(q, k), _key_rows(k), _key_rows(v), _query_rows(dout, k)
    delta = (dout_rows * _query_rows(out, k)).sum(-1, keepdim=True)
    if dlse is not None:
        delta = delta - dlse.reshape(delta.shape)
    # exp(-inf - inf) is 0, where -inf - -inf would be NaN.
    shift = lse.masked_fill(lse == -math.inf, math.inf).reshape(delta.shape)
    p = _scores(q, k, visible, scale).sub_(shift).exp_()
    ds = p * (dout_rows @ v_rows.mT).sub_(delta)
    if visible is not None:
        # A NaN in q, k, v or dout reaches hidden places of its row or column by the two products above.
        p, ds = p.masked_fill(~visible, 0), ds.masked_fill(~visible, 0)
    visible_T = None if visible is None else visible.mT
    dq = _matmul(ds, k_rows, visible, guard) * scale
    dk = _matmul(ds.mT, q_rows, visible_T, guard) * scale
    dv = _matmul(p.mT, dout_rows, visible_T, guard)
    return _like_queries(dq, q), _like_keys(dk, k), _like_keys(dv, k)


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
    batch, seqlen_q, heads, head_dim = q.shape
    return rows.reshape(batch, heads, seqlen_q, head_dim).transpose(1, 2).to(q.dtype).contiguous()


def _like_keys(rows: Tensor, k: Tensor) -> Tensor:
    """(B, Hkv, Sk, D) -> (B, Sk, Hkv, D), in k's dtype."""
    return rows.transpose(1, 2).to(k.dtype).contiguous()


def _visible(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, diagonal: int) -> Tensor | None:
    """Which scores count, broadcastable to them; None for all."""
    batch, seqlen_q, heads, _ = q.shape
    _, seqlen_k, kv_heads, _ = k.shape
    visible = None if mask is None else mask[(None,) * (4 - mask.dim())]
    if causal:
        rows = torch.arange(seqlen_q, device=q.device)[:, None]
        below = torch.arange(seqlen_k, device=q.device) <= rows + diagonal
        visible = below if visible is None else below & visible
    if visible is None or heads == kv_heads:
        return visible
    visible = visible.expand(batch, heads, seqlen_q, seqlen_k)
    return visible.reshape(batch, kv_heads, heads // kv_heads * seqlen_q, seqlen_k)


def _scores(q: Tensor, k: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """scale q k^T, -inf where hidden."""
    scores = (_query_rows(q, k) * scale) @ _key_rows(k).mT
    return scores if visible is None else scores.masked_fill_(~visible, -math.inf)


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
