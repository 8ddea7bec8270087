"""Attention through PyTorch's flash attention for the CPU where that computes what is asked, else by the definition.

It takes masks, biases and windows as one tensor that is added to the scores, knows no softcap, sinks or dropout, lets
hidden NaN out, and stores no scores: several times faster than reference.py.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels.aten import is_known_finite
from fusedformer.kernels.attention import reference
from fusedformer.kernels.attention.extras import Extras

_flash_fwd = torch._scaled_dot_product_flash_attention_for_cpu
_flash_bwd = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """As `reference.attention_fwd`."""
    extras = Extras(*settings)
    if extras.is_packed and extras._replace(starts_q=None, starts_k=None).is_bare:
        return reference.packed_fwd(lambda q, k, v, own, _: attention_fwd(q, k, v, *own), q, k, v, extras)
    if not _flash_fits(q, k, v, extras):
        return reference.attention_fwd(q, k, v, *settings)
    left, right = extras.window(q, k)
    if k.shape[2] < q.shape[2] and q.shape[1] == 1 and extras.is_bare and left is None and right is None:
        # One query of each sequence, as in decoding: those that share a key head are as many queries of one head.
        folded = q.unflatten(2, (k.shape[2], -1)).squeeze(1).transpose(1, 2)
        out, lse = _flash_fwd(_heads_first(folded), _heads_first(k), _heads_first(v), 0.0, False, scale=extras.scale)
        return out.flatten(1, 2).unsqueeze(1).contiguous(), lse.flatten(1, 2).unsqueeze(2).contiguous()
    causal, added = _hiding(q, k, extras)
    heads_first = _heads_first(q), _per_query_head(k, q), _per_query_head(v, q)
    out, lse = _flash_fwd(*heads_first, 0.0, causal, attn_mask=added, scale=extras.scale)
    if (causal or added is not None) and not is_known_finite(out):  # NaN of a hidden key, perhaps
        return reference.attention_fwd(q, k, v, *settings)
    if added is not None:
        lse = lse.masked_fill((added == -math.inf).all(-1), -math.inf)  # 0 there
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def attention_bwd(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, wanted: list[bool],
    q: Tensor, k: Tensor, v: Tensor, *settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.attention_bwd`."""
    extras = Extras(*settings)
    if dlse is None and not any(wanted[2:]) and not extras.is_packed and _flash_fits(q, k, v, extras):
        causal, added = _hiding(q, k, extras)
        heads_first = _heads_first(dout), _heads_first(q), _per_query_head(k, q), _per_query_head(v, q)
        known = lse if added is None else lse.masked_fill(lse == -math.inf, 0)
        gradients = _flash_bwd(*heads_first, _heads_first(out), known, 0.0, causal, attn_mask=added, scale=extras.scale)
        if not (causal or added is not None) or all(map(is_known_finite, gradients)):
            none = q.new_empty(0)
            dq = gradients[0].transpose(1, 2).contiguous() if wanted[0] else none
            dk, dv = (_per_key_head(x, k) if wanted[1] else none for x in gradients[1:])
            return dq, dk, dv, none.clone(), none.clone(), none.clone()
    return reference.attention_bwd(dout, dlse, out, lse, wanted, q, k, v, *settings)


def _flash_fits(q: Tensor, k: Tensor, v: Tensor, extras: Extras) -> bool:
    """Whether ATen's flash attention for the CPU computes this."""
    if not q.is_cpu or extras.is_packed or extras.softcap or extras.sinks is not None or extras.seed is not None:
        return False
    # What is added has q's dtype there.
    keeps_slopes = extras.slopes is None or q.dtype in (torch.float32, torch.float64)
    keeps_bias = extras.bias is None or torch.promote_types(extras.bias.dtype, q.dtype) == q.dtype
    return q.shape[3] == v.shape[3] and q.numel() > 0 and k.numel() > 0 and keeps_slopes and keeps_bias


def _hiding(q: Tensor, k: Tensor, extras: Extras) -> tuple[bool, Tensor | None]:
    """Whether it is causal from the top left, and what else is added to the scores: (1 or B, 1 or H, 1 or Sq, Sk)."""
    left, right = extras.window(q, k)
    is_square = q.shape[1] == k.shape[1] or not extras.bottom_right
    if extras.is_bare and left is None and (right is None or (right == 0 and is_square)):
        return right == 0, None
    visible = reference.visible_pairs(q, k, extras._replace(left=left, right=right))
    added = reference.added_to_scores(q, k, extras)
    if added is None:
        added = q.new_zeros(()).expand(visible.shape) if visible is not None else q.new_zeros((1, 1, 1, k.shape[1]))
    added = added.to(q.dtype)
    if visible is not None:
        added = added.masked_fill(~visible, -math.inf)
    return False, added.expand(*added.shape[:3], k.shape[1])


def _per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """(B, Sk, Hkv, D) -> (B, H, Sk, D), each key head repeated for the query heads that share it."""
    x = _heads_first(x)
    return x if x.shape[1] == q.shape[2] else x.repeat_interleave(q.shape[2] // x.shape[1], 1)


def _per_key_head(x: Tensor, k: Tensor) -> Tensor:
    """(B, H, Sk, D) -> (B, Sk, Hkv, D), summed over the query heads that share a key head."""
    if x.shape[1] != k.shape[2]:
        x = x.unflatten(1, (k.shape[2], -1)).sum(2, dtype=reference.accumulate_dtype(x.dtype)).to(x.dtype)
    return x.transpose(1, 2).contiguous()


def _heads_first(x: Tensor) -> Tensor:
    """(B, S, H, D) -> (B, H, S, D), its last dimension dense: ATen's flash attention reads it so without a look."""
    x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()
