"""Logarithm of the softmax over one dimension: y = x - logsumexp(x).

M rows (all other dimensions), N elements of a row.
Memory traffic: forward reads x and writes y, 2 M N elements; backward reads dy and y and writes dx, 3 M N.
Device code: csrc/log_softmax.cu.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, reference


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of the softmax of `x` along `dim`, without its over- or underflow.

    A row of -inf alone gives -inf (PyTorch gives NaN); a NaN or +inf gives NaN in its own row only.

    Args:
        x: any shape but (), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        dim: the dimension whose exponentials sum to 1, from -x.dim() to x.dim() - 1.

    Returns:
        Tensor of x's shape and dtype; sums are computed in float32 whatever the input. Contiguous for the last
        dimension. For another one x is copied to make `dim` the last, and the result is a view of that copy's,
        strided as it was.

    Raises:
        ValueError: dim is no int or out of range, or the dtype is not a floating point type the device computes.
    """
    if dim == -1:
        if not is_compiling() and (y := eager.log_softmax(x)) is not None:
            return y
        if (y := log_softmax_fwd.natively(x)) is not None or (y := log_softmax_fwd.by_kernel(x)) is not None:
            return y
    if not library.are_alike(x):
        library.check_tensor("log_softmax", "x", x)
        library.check_dtype("log_softmax", x=x)
    library.check_dim("log_softmax", x, dim)
    if dim in (-1, x.dim() - 1):
        return log_softmax_fwd(x)
    return log_softmax_fwd(x.movedim(dim, -1)).movedim(-1, dim)


def _fwd_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _bwd_fake(dy: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _save_fwd(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _fwd_gradient(ctx: Any, dy: Tensor) -> Tensor:
    (y,) = ctx.saved_tensors
    return log_softmax_bwd(dy, y)


def _save_bwd(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _bwd_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return library.vjp(reference.log_softmax_bwd, ctx.saved_tensors, grad)


log_softmax_fwd = library.define(
    "log_softmax_fwd(Tensor x) -> Tensor",
    fallback=aten.log_softmax_fwd,
    fake=_fwd_fake,
    native=native.log_softmax_fwd,
)
log_softmax_bwd = library.define(
    "log_softmax_bwd(Tensor dy, Tensor y) -> Tensor", fallback=aten.log_softmax_bwd, fake=_bwd_fake
)
library.differentiate("log_softmax_fwd", _fwd_gradient, _save_fwd, reference.log_softmax_fwd, row_wise=True)
library.differentiate("log_softmax_bwd", _bwd_gradient, _save_bwd, reference.log_softmax_bwd, row_wise=True)
