"""Softmax over one dimension: y = exp(x - max(x)) / sum(exp(x - max(x))).

M rows (all other dimensions), N elements of a row.
Memory traffic: forward reads x and writes y, 2 M N elements; backward reads dy and y and writes dx, 3 M N.
Device code: csrc/softmax.cu; with scale, mask or causal, csrc/masked_softmax.cu (masked_softmax.py).
Source: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, reference
from fusedformer.kernels.masked_softmax import masked_softmax_fwd


def softmax(
    x: Tensor, dim: int = -1, *, scale: float = 1.0, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Softmax of `scale * x`, masked, along `dim`.

    A row of -inf alone gives zeros (PyTorch gives NaN), as does one that sees nothing; a NaN or +inf gives NaN in its
    own row only. Where a mask hides it, x may be anything, NaN too: the result and the gradient there are 0.

    Args:
        x: any shape but (), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        dim: the dimension that sums to 1, from -x.dim() to x.dim() - 1.
        scale: a factor for x, not for the mask.
        mask: of x's shape, or one that broadcasts to it, and is not expanded in memory. Boolean: True takes part. Else
            added, in any of these dtypes, where -inf hides; it has a gradient then.
        causal: hides, for 3 queries and 5 keys as the last two dimensions, and `dim` the last one, what is 0 here:

            1 1 1 0 0
            1 1 1 1 0
            1 1 1 1 1

    Returns:
        Tensor of x's shape and dtype; sums are computed in float32 whatever the input. Contiguous for the last
        dimension. For another one x is copied to make `dim` the last, and the result is a view of that copy's softmax,
        strided as it was.

    Raises:
        ValueError: dim is no int or out of range, shapes or devices do not fit, scale is not finite, causal is of no
            last two dimensions, or a dtype is not a floating point type the device computes.

    Source: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    is_plain = mask is None and not causal and scale == 1
    if is_plain and dim == -1:
        if not is_compiling() and (y := eager.softmax(x)) is not None:
            return y
        if (y := softmax_fwd.natively(x)) is not None or (y := softmax_fwd.by_kernel(x)) is not None:
            return y
    if not library.are_alike(x):
        library.check_tensor("softmax", "x", x)
        library.check_dtype("softmax", x=x)
    library.check_dim("softmax", x, dim)
    is_last = dim in (-1, x.dim() - 1)
    rows = x if is_last else x.movedim(dim, -1)
    if is_plain:
        y = softmax_fwd(rows)
    else:
        _check_masking(x, scale, mask, causal, is_last)
        mask = None if mask is None else _mask_of_rows(mask, x, dim)
        arguments = (rows, mask, bool(causal), float(scale))
        y = None if is_compiling() else eager.masked_softmax(*arguments)
        if y is None:
            y = masked_softmax_fwd(*arguments)
    return y if is_last else y.movedim(-1, dim)


def _check_masking(x: Tensor, scale: float, mask: Tensor | None, causal: bool, is_last: bool) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"softmax: scale is {scale}, expected a finite number")
    if causal and (x.dim() < 2 or not is_last):
        raise ValueError(f"softmax: causal asks for two dimensions and dim -1, x has shape {tuple(x.shape)}")
    if mask is None:
        return
    library.check_tensor("softmax", "mask", mask)
    sizes = zip(reversed(mask.shape), reversed(x.shape), strict=False)
    if mask.dim() > x.dim() or any(size not in (1, expected) for size, expected in sizes):
        raise ValueError(f"softmax: mask has shape {tuple(mask.shape)}, which is not broadcast to {tuple(x.shape)}")
    if mask.dtype != torch.bool:
        library.check_dtype("softmax", mask=mask)
    library.check_device("softmax", x=x, mask=mask)


def _mask_of_rows(mask: Tensor, x: Tensor, dim: int) -> Tensor:
    """The mask with x's shape and `dim` last, a view unless it has one element for all of a row or another dtype."""
    if mask.dtype not in (torch.bool, x.dtype, torch.float32):
        mask = mask.to(reference.accumulate_dtype(x.dtype))
    mask = mask.reshape((1,) * (x.dim() - mask.dim()) + mask.shape)
    if mask.shape[dim] == 1 != x.shape[dim]:
        mask = mask.expand([x.shape[dim] if d == dim % x.dim() else size for d, size in enumerate(mask.shape)])
        mask = mask.contiguous()
    return mask.expand(x.shape).movedim(dim, -1)


def _fwd_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _bwd_fake(dy: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _save_fwd(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _fwd_gradient(ctx: Any, dy: Tensor) -> Tensor:
    (y,) = ctx.saved_tensors
    return softmax_bwd(dy, y)


def _save_bwd(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _bwd_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return library.vjp(reference.softmax_bwd, ctx.saved_tensors, grad)


softmax_fwd = library.define(
    "softmax_fwd(Tensor x) -> Tensor", fallback=aten.softmax_fwd, fake=_fwd_fake, native=native.softmax_fwd
)
softmax_bwd = library.define("softmax_bwd(Tensor dy, Tensor y) -> Tensor", fallback=aten.softmax_bwd, fake=_bwd_fake)
library.differentiate("softmax_fwd", _fwd_gradient, _save_fwd, reference.softmax_fwd, row_wise=True)
library.differentiate("softmax_bwd", _bwd_gradient, _save_bwd, reference.softmax_bwd, row_wise=True)
