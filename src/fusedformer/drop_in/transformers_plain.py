"""Hugging Face's attention where there is no kernel of ours: through PyTorch's own, as transformers' `sdpa` has it.

So that a model on a CPU is not slower than it was. What PyTorch's function does not know stays with ours: soft caps,
sinks and packed sequences.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.drop_in import routing
from fusedformer.drop_in.transformers_masks import PatternMask


def fits(query: Tensor, packed: tuple[Tensor | None, Tensor | None], settings: dict[str, Any]) -> bool:
    """Whether PyTorch's function computes this call, and no kernel of ours would."""
    if routing.has_kernel("attention", query):
        return False
    return packed == (None, None) and settings["sinks"] is None and settings["softcap"] == 0


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, settings: dict[str, Any]
) -> Tensor:
    """(B, Sq, H, Dv) of (B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv), a mask and a bias of the scores."""
    window = _window(mask, key)
    is_causal = bias is None and window == (None, 0) and query.shape[2] == key.shape[2]
    is_free = is_causal or window == (None, None)
    added = _mask_and_bias(None if is_free else mask, bias, query, key)
    n_shared = query.shape[1] // key.shape[1]
    if n_shared > 1 and added is not None:  # with a mask, PyTorch's fused kernels share no heads
        key, value = (x.repeat_interleave(n_shared, 1) for x in (key, value))
    out = F.scaled_dot_product_attention(
        query, key, value, added, settings["dropout_p"], is_causal, scale=settings["scale"], enable_gqa=n_shared > 1
    )
    return out.transpose(1, 2).contiguous()


def dense(mask: Tensor, seqlen_k: int) -> Tensor:
    """The mask as a tensor, of as many keys as there are: version 4 leaves it longer than a cache is filled."""
    return (mask.dense() if isinstance(mask, PatternMask) else mask)[..., :seqlen_k]


def _window(mask: Tensor | None, key: Tensor) -> tuple[int | None, int | None] | None:
    """The window of a mask that hides nothing else; None of any other."""
    if not isinstance(mask, PatternMask) or mask.is_computed or mask.n_keys != key.shape[2]:
        return None
    return mask.window if mask.padding is None and mask.starts is None else None


def _mask_and_bias(mask: Tensor | None, bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """One of the two, or both as a bias."""
    if mask is None:
        return bias
    mask = dense(mask, key.shape[2])
    if bias is None:
        return mask
    if mask.dtype != torch.bool:
        return bias + mask
    return torch.where(mask, bias, torch.finfo(query.dtype).min)
