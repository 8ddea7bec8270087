"""What attention of float8 tensors must give: in float64, and by PyTorch with weights that are rounded to e4m3."""

import math

import torch
from torch import Tensor

from fusedformer.kernels.attention.fp8.reference import DTYPE, dequantize

LARGEST = 2.0**8  # of a weight, before it is rounded
BLOCK = 128  # keys of a tile of the Hopper kernel

Quantized = tuple[Tensor, Tensor]


def dequantized(*tensors: Quantized) -> list[Tensor]:
    """The (B, S, H, D) float64 tensors that float8 ones and their descales stand for."""
    return [dequantize(x.cpu(), descale.cpu(), torch.float64) for x, descale in tensors]


def attention_by_tiles(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: tuple[int | None, int | None] = (None, None),
    rounded: bool = False, block: int = BLOCK,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, Sq, H, Dv) and the log-sum-exp (B, H, Sq) of float64 tensors, by tiles of keys from the first on.

    If `rounded`, the weights of a tile are rounded to e4m3, scaled by the largest so far, before they meet values.
    """
    group = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), *(x.transpose(1, 2).repeat_interleave(group, 1) for x in (k, v))
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~visible_pairs(q, k, causal, window), -math.inf)
    peak = scores.new_full((*scores.shape[:3], 1), torch.finfo(torch.float32).min)
    total, acc = torch.zeros_like(peak), q.new_zeros((*q.shape[:3], v.shape[3]))
    for start in range(0, k.shape[2], block):
        tile = scores[..., start : start + block]
        new_peak = peak.maximum(tile.amax(-1, keepdim=True) - math.log(LARGEST))
        weights, shrink = (tile - new_peak).exp(), (peak - new_peak).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        values = v[..., start : start + block, :]
        acc = acc * shrink + (weights.float().to(DTYPE).double() if rounded else weights) @ values
        peak = new_peak
    sees_none = total == 0
    out = (acc / total.masked_fill(sees_none, 1)).transpose(1, 2)
    return out, (peak + total.log()).masked_fill(sees_none, -math.inf).squeeze(-1)


def visible_pairs(q: Tensor, k: Tensor, causal: bool, window: tuple[int | None, int | None]) -> Tensor:
    """(Sq, Sk): which query sees which key; q and k in bhsd."""
    left, right = window
    if causal:
        right = 0 if right is None else min(right, 0)
    behind = torch.arange(q.shape[2])[:, None] + (k.shape[2] - q.shape[2]) - torch.arange(k.shape[2])
    visible = torch.ones_like(behind, dtype=torch.bool)
    if left is not None:
        visible &= behind <= left
    if right is not None:
        visible &= behind >= -right
    return visible
