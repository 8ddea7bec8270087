"""Attention through PyTorch's flash attention for the CPU where that computes what is asked, else by the definition.

It knows no hidden NaN and no features, and stores no scores: several times faster than reference.py.
"""

from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels.attention import reference
from fusedformer.kernels.attention.extras import Extras

_aten = torch.ops.aten


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """As `reference.attention_fwd`."""
    extras = Extras(*settings)
    if not _flash_fits(q, k, v, extras=extras):
        return reference.attention_fwd(q, k, v, *settings)
    causal = extras.window(q, k)[1] is not None
    heads_first = (_heads_first(x) for x in (q, k, v))
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, 0.0, causal, scale=extras.scale)
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def attention_bwd(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, wanted: list[bool],
    q: Tensor, k: Tensor, v: Tensor, *settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.attention_bwd`."""
    extras = Extras(*settings)
    if dlse is not None or not _flash_fits(q, k, v, dout, extras=extras):
        return reference.attention_bwd(dout, dlse, out, lse, wanted, q, k, v, *settings)
    causal = extras.window(q, k)[1] is not None
    heads_first = (_heads_first(x) for x in (dout, q, k, v, out))
    gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *heads_first, lse, 0.0, causal, scale=extras.scale
    )
    none = q.new_empty(0)
    flags = (wanted[0], wanted[1], wanted[1])
    found = (x.transpose(1, 2).contiguous() if flag else none for x, flag in zip(gradients, flags))
    return *found, none.clone(), none.clone(), none.clone()


def _flash_fits(q: Tensor, k: Tensor, v: Tensor, *others: Tensor, extras: Extras) -> bool:
    """Whether ATen's flash attention for the CPU computes this: one key head a query head, causal from the top left."""
    tensors = (q, k, v, *others)
    special = (extras.mask, extras.bias, extras.slopes, extras.sinks, extras.seed, extras.starts_q)
    if q.device.type != "cpu" or extras.softcap or any(x is not None for x in special):
        return False
    if q.shape[2] != k.shape[2] or q.shape[3] != v.shape[3] or not all(x.numel() for x in tensors):
        return False
    left, right = extras.window(q, k)
    if left is None and right is None:
        return True
    from_top_left = right == 0 and (q.shape[1] == k.shape[1] or not extras.bottom_right)
    # A hidden NaN leaks there, since its weight of 0 times NaN is NaN; without a mask nothing is hidden.
    return left is None and from_top_left and all(bool(x.isfinite().all()) for x in tensors)


def _heads_first(x: Tensor) -> Tensor:
    """(B, S, H, D) -> (B, H, S, D), its last dimension dense: ATen's flash attention reads it so without a look."""
    x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()
