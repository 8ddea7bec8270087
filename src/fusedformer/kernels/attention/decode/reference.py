"""Attention against a cache of keys in plain PyTorch: the definition of its ops, and what computes without Triton.

Legend: attention_decode_kernel.py. Lengths are read on the host.
"""

from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels.attention import reference
from fusedformer.kernels.attention.decode.inputs import Places
from fusedformer.kernels.reference import accumulate_dtype


def attention_append(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None,
    interleaved: bool, advance: bool, *where: Any,
) -> Tensor:  # fmt: skip
    """Write k and v into the caches, in place, where each sequence ends; q and k are rotated before.

    Query i is at position length + i if `advance`, at position length otherwise.

    Returns:
        The rotated q; empty without rotary.
    """
    places = Places(*where)
    places.check_values("attention_append", k_cache, len(q), k.shape[1])
    rotated = torch.empty_like(q, memory_format=torch.contiguous_format) if cos is not None else q.new_empty(0)
    for sequence in range(len(q)):
        length = _length(places, sequence)
        page, row = _key_places(places, k_cache, sequence, length, length + k.shape[1])
        keys = k[sequence]
        if cos is not None and sin is not None:
            start = torch.full((q.shape[1],), length, device=q.device)
            steps = torch.arange(q.shape[1], device=q.device) if advance else 0
            rotated[sequence] = rotate(q[sequence], cos, sin, start + steps, interleaved)
            keys = rotate(keys, cos, sin, torch.arange(length, length + len(keys), device=q.device), interleaved)
        k_cache[page, row], v_cache[page, row] = keys, v[sequence]
    return rotated


def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slopes: Tensor | None, scale: float, softcap: float,
    left: int | None, right: int | None, num_splits: int, *where: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, Sq, H, Dv) and log-sum-exp (B, H, Sq) of each sequence over its keys, the last query facing the last."""
    places = Places(*where)
    places.check_values("attention_decode", k_cache, len(q))
    out = q.new_empty((*q.shape[:-1], v_cache.shape[-1]))
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=accumulate_dtype(q.dtype))
    for sequence in range(len(q)):
        first = 0 if places.leftpad is None else int(places.leftpad[sequence])
        page, row = _key_places(places, k_cache, sequence, max(first, 0), _length(places, sequence))
        one = slice(sequence, sequence + 1)
        out[one], lse[one] = reference.attention_fwd(
            q[one], k_cache[page, row][None], v_cache[page, row][None],
            None, None, None if slopes is None else slopes[one], None, None, None, None,
            scale, softcap, 0.0, left, right, True,
        )  # fmt: skip
    return out, lse


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """x (S, H, D), of whose first R dimensions each pair turns by the angle of its position; NaN past the table."""
    wide = accumulate_dtype(x.dtype)
    inside = (positions < len(cos))[:, None, None]
    rows = positions.clamp(max=len(cos) - 1)
    cos, sin = (table.to(wide)[rows][:, None].masked_fill(~inside, torch.nan) for table in (cos, sin))
    turning, rest = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    pairs = turning.to(wide).unflatten(-1, (-1, 2) if interleaved else (2, -1))
    a, b = pairs.unbind(-1 if interleaved else -2)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1 if interleaved else -2)
    return torch.cat([turned.flatten(-2).to(x.dtype), rest], -1)


def _length(places: Places, sequence: int) -> int:
    return places.length + (0 if places.lengths is None else int(places.lengths[sequence]))


def _key_places(places: Places, cache: Tensor, sequence: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Page of each key from `first` to `last`, and its row there."""
    j = torch.arange(first, max(first, last), device=cache.device)
    if places.block_table is not None:
        size = max(1, cache.shape[1])
        return places.block_table[sequence, j // size].long(), j % size
    return j * 0 + (sequence if places.rows is None else int(places.rows[sequence])), j
