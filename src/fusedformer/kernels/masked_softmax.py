"""Softmax of scaled and masked scores over the last dimension: y = softmax(scale * x + mask), 0 where hidden.

M rows (all leading dimensions), N elements of a row. The public function is `fusedformer.softmax`.
Memory traffic: forward reads x and the mask and writes y; backward reads dy and y and writes dx. Of what causal hides,
nothing is read.
Device code: csrc/masked_softmax.cu.
"""

from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels import library, reference


def _fwd_fake(x: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _bwd_fake(dy: Tensor, y: Tensor, causal: bool, scale: float) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, ctx.causal, ctx.scale = inputs
    ctx.mask_dtype = None if mask is None else mask.dtype
    ctx.save_for_backward(output)


def _fwd_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (y,) = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return masked_softmax_bwd(dy, y, ctx.causal, ctx.scale), None, None, None
    dscores = masked_softmax_bwd(dy, y, ctx.causal, 1.0)
    return dscores if ctx.scale == 1 else dscores * ctx.scale, dscores.to(ctx.mask_dtype), None, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _bwd_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    def backward(dy: Tensor, y: Tensor) -> Tensor:
        return reference.masked_softmax_bwd(dy, y, ctx.causal, ctx.scale)

    return *library.vjp(backward, ctx.saved_tensors, grad), None, None


masked_softmax_fwd = library.define(
    "masked_softmax_fwd(Tensor x, Tensor? mask, bool causal, float scale) -> Tensor",
    fallback=reference.masked_softmax_fwd,
    fake=_fwd_fake,
)
masked_softmax_bwd = library.define(
    "masked_softmax_bwd(Tensor dy, Tensor y, bool causal, float scale) -> Tensor",
    fallback=reference.masked_softmax_bwd,
    fake=_bwd_fake,
)
library.differentiate("masked_softmax_fwd", _fwd_gradient, _save_fwd, reference.masked_softmax_fwd, row_wise=True)
library.differentiate("masked_softmax_bwd", _bwd_gradient, _save_bwd, reference.masked_softmax_bwd, row_wise=True)
