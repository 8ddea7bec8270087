"""Attention of float8 tensors in plain PyTorch: its definition, the oracle of its tests (in float64) and the CPU path.

A float8 tensor stands for x8 * descale, with a positive number for each head: the result is attention of these
products, in bfloat16. A head whose descale is not positive gives NaN.
"""

import math

import torch
from torch import Tensor

from fusedformer.kernels.attention import aten

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
OUT_DTYPE = torch.bfloat16


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, S, H, D) in float8, and its descale (B, H), by which the largest finite element of a head is 448.

    Infinities, which e4m3 does not have, become NaN.
    """
    wide = x.float()
    finite = wide.isfinite()
    # A head of zeros has any positive descale, also one that 448 does not make infinite.
    smallest = torch.finfo(torch.float32).tiny
    descale = wide.new_ones((x.shape[0], x.shape[2]))
    if x.numel():
        descale = (wide.abs().masked_fill(~finite, 0).amax((1, 3)) / LARGEST).clamp(min=smallest)
    scaled = (wide / descale[:, None, :, None]).clamp(-LARGEST, LARGEST).masked_fill(~finite, math.nan)
    return scaled.to(DTYPE), descale


def dequantize(x: Tensor, descale: Tensor, dtype: torch.dtype) -> Tensor:
    """The (B, S, H, D) tensor that float8 x and descale (B, H) stand for, in another dtype."""
    descale = descale.to(dtype if dtype == torch.float64 else torch.float32)
    descale = descale.where(descale > 0, math.nan)
    return (x.to(descale.dtype) * descale[:, None, :, None]).to(dtype)


def attention_fp8_fwd(
    q: Tensor, k: Tensor, v: Tensor, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, *settings: object
) -> tuple[Tensor, Tensor]:
    """out (B, Sq, H, Dv) bfloat16 and the log-sum-exp (B, H, Sq) float32; for `settings` see `extras.Extras`."""
    pairs = (q, q_descale), (k, k_descale), (v, v_descale)
    out, lse = aten.attention_fwd(*(dequantize(*pair, torch.float32) for pair in pairs), *settings)
    return out.to(OUT_DTYPE), lse
