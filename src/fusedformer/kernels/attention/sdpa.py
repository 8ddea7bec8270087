"""Attention behind the signatures of other libraries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.attention.op import attend

_SDPA = Call("scaled_dot_product_attention", "query", "key", "value", "attn_mask", "attn_mask")


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: its signature and its meaning.

    `is_causal` aligns the first query with the first key, so key j is hidden from query i where j > i. A query that
    sees no key gives 0. Leading dimensions broadcast.

    Args:
        query: (..., H, L, D), or (L, D); float32, float16 or bfloat16 (on the CPU float64 too).
        key: (..., H, S, D), or with `enable_gqa` (..., Hkv, S, D).
        value: (..., H, S, Dv), or with `enable_gqa` (..., Hkv, S, Dv).
        attn_mask: bool, where True takes part, or floating point, added to the scores (and differentiable);
            broadcastable to (..., H, L, S), with at least two dimensions.
        dropout_p: probability with which a weight is dropped, less than 1; not the weights that PyTorch would drop.
        is_causal: see above; not together with `attn_mask`.
        scale: factor of the scores; 1 / sqrt(D) if None.
        enable_gqa: let H be a multiple of Hkv.

    Returns:
        Tensor (..., H, L, Dv) of query's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; `attn_mask` is given with `is_causal`.

    Source: the documentation of PyTorch's function of that name.
    """
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        library.check_tensor(_SDPA.function, name, tensor)
        if tensor.dim() < 2:
            raise _SDPA.error(f"{name} has shape {tuple(tensor.shape)}, expected 2 dimensions or more")
    if attn_mask is not None and is_causal:
        raise _SDPA.error("attn_mask is given and is_causal is True, expected one of the two at most")
    q, k, v = _broadcast(named, enable_gqa)
    mask = None if attn_mask is None else _mask_of_rank_4(attn_mask, (*q.shape[:-1], k.shape[-2]))
    is_additive = mask is not None and mask.dtype != torch.bool
    out, _ = attend(
        _SDPA, *((x if x.dim() == 4 else x.flatten(0, -4)).transpose(1, 2) for x in (q, k, v)),
        mask=None if is_additive else mask, bias=mask if is_additive else None,
        causal=is_causal, scale=scale, dropout_p=dropout_p, bottom_right=False,
    )  # fmt: skip
    out = out.transpose(1, 2)
    rank = max(query.dim(), key.dim(), value.dim())
    return out if rank == 4 else out.reshape(*q.shape[q.dim() - rank : -1], v.shape[-1])


def _broadcast(named: dict[str, Tensor], enable_gqa: bool) -> Sequence[Tensor]:
    """At least four dimensions for each tensor, and the same leading ones; with `enable_gqa` heads may differ."""
    query, key, value = named.values()
    shared = slice(0, 1) if enable_gqa else slice(0, 2)
    if query.dim() == key.dim() == value.dim() == 4 and query.shape[shared] == key.shape[shared] == value.shape[shared]:
        return query, key, value
    rank = max(4, *(tensor.dim() for tensor in named.values()))
    padded = [tensor[(None,) * (rank - tensor.dim())] for tensor in named.values()]
    common = rank - 3 if enable_gqa else rank - 2
    try:
        leading = torch.broadcast_shapes(*(tensor.shape[:common] for tensor in padded))
    except RuntimeError:
        shapes = ", ".join(f"{name} has shape {tuple(tensor.shape)}" for name, tensor in named.items())
        hint = "" if enable_gqa else " (key heads are shared with enable_gqa=True only)"
        raise _SDPA.error(f"{shapes}: the leading dimensions do not broadcast{hint}") from None
    return [tensor.expand(*leading, *tensor.shape[common:]) for tensor in padded]


def _mask_of_rank_4(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    library.check_tensor(_SDPA.function, _SDPA.mask, mask)
    if mask.dim() < 2:
        raise _SDPA.error(f"attn_mask has shape {tuple(mask.shape)}, expected 2 dimensions or more")
    if len(shape) == 4:
        return mask
    try:
        return mask.expand(shape).flatten(0, -4)
    except RuntimeError:
        wrong = f"attn_mask has shape {tuple(mask.shape)}"
        raise _SDPA.error(f"{wrong}, which does not broadcast to {shape}") from None
