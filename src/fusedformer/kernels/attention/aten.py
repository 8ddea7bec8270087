"""Attention through PyTorch's flash attention for the CPU where that computes what is asked, else by the definition.

It knows no hidden NaN and no features, and stores no scores: several times faster than reference.py.
"""

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
    left, right = extras.window(q, k)
    n_shared = q.shape[2] // k.shape[2] if k.shape[2] else 1
    if n_shared > 1 and q.shape[1] == 1 and left is None and right is None:
        # One query of each sequence, as in decoding: those that share a key head are as many queries of one head.
        folded = q.unflatten(2, (k.shape[2], n_shared)).squeeze(1).transpose(1, 2)
        if _flash_fits(folded, k, v, extras, None, None):
            heads_first = _heads_first(folded), _heads_first(k), _heads_first(v)
            out, lse = _flash_fwd(*heads_first, 0.0, False, scale=extras.scale)
            return out.flatten(1, 2).unsqueeze(1).contiguous(), lse.flatten(1, 2).unsqueeze(2).contiguous()
    if _flash_fits(q, k, v, extras, left, right):
        causal = right is not None
        out, lse = _flash_fwd(_heads_first(q), _heads_first(k), _heads_first(v), 0.0, causal, scale=extras.scale)
        if not causal or is_known_finite(out):
            return out.transpose(1, 2).contiguous(), lse.contiguous()
    return reference.attention_fwd(q, k, v, *settings)


def attention_bwd(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, wanted: list[bool],
    q: Tensor, k: Tensor, v: Tensor, *settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.attention_bwd`."""
    extras = Extras(*settings)
    left, right = extras.window(q, k)
    if dlse is None and _flash_fits(q, k, v, extras, left, right):
        causal = right is not None
        heads_first = (_heads_first(x) for x in (dout, q, k, v, out))
        gradients = _flash_bwd(*heads_first, lse, 0.0, causal, scale=extras.scale)
        if not causal or all(map(is_known_finite, gradients)):
            none = q.new_empty(0)
            flags = (wanted[0], wanted[1], wanted[1])
            found = (x.transpose(1, 2).contiguous() if flag else none for x, flag in zip(gradients, flags))
            return *found, none.clone(), none.clone(), none.clone()
    return reference.attention_bwd(dout, dlse, out, lse, wanted, q, k, v, *settings)


def _flash_fits(q: Tensor, k: Tensor, v: Tensor, extras: Extras, left: int | None, right: int | None) -> bool:
    """Whether ATen's flash attention for the CPU computes this: one key head a query head, causal from the top left.

    A hidden NaN leaks there, since its weight of 0 times NaN is NaN: what comes out is to be looked at.
    """
    if not q.is_cpu or not extras.is_bare or q.shape[2] != k.shape[2] or q.shape[3] != v.shape[3]:
        return False
    if not (q.numel() and k.numel()):
        return False
    if left is None and right is None:
        return True
    return left is None and right == 0 and (q.shape[1] == k.shape[1] or not extras.bottom_right)


def _heads_first(x: Tensor) -> Tensor:
    """(B, S, H, D) -> (B, H, S, D), its last dimension dense: ATen's flash attention reads it so without a look."""
    x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()
