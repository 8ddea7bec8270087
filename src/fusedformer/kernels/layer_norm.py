"""LayerNorm over the last dimension: y = (x - mean) / sqrt(variance + eps) * weight + bias.

M rows (all leading dimensions), N features.
Memory traffic: forward reads x and writes y, 2 M N elements; backward reads dy and x and writes dx, 3 M N. It makes the
gradients of weight and bias on the way, but where rows are no multiple of 16 bytes, or too long for a cluster: there it
reads dy and x again, 2 M N.
Device code: csrc/layer_norm.cu over csrc/norm.cuh. Source: Ba, Kiros, Hinton, "Layer Normalization", 2016.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, norms, reference


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Normalise each row of `x` to mean 0 and variance 1, then scale and shift.

    Args:
        x: (..., N), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        weight: (N,), any of these dtypes; ones if None.
        bias: (N,), any of these dtypes; zeros if None.
        eps: added to the variance.

    Returns:
        Tensor of x's shape and dtype. Statistics are computed in float32 whatever the input.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or eps is not a finite number >= 0.

    Source: Ba, Kiros, Hinton, "Layer Normalization", 2016, equation 4.
    """
    if not is_compiling() and (y := eager.layer_norm(x, weight, bias, eps)) is not None:
        return y
    if (y := layer_norm_fwd.natively(x, weight, bias, eps)) is not None:
        return y
    if (results := layer_norm_fwd.by_kernel(x, weight, bias, eps)) is not None:
        return results[0]
    norms.check("layer_norm", x, weight, bias, eps)
    weight, bias = norms.parameters_of_one_dtype(x, weight, bias)
    y, _, _ = layer_norm_fwd(x, weight, bias, eps)
    return y


def _fwd_fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean = x.new_empty(x.shape[:-1], dtype=reference.accumulate_dtype(x.dtype))
    return y, mean, torch.empty_like(mean)


def _bwd_fake(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, needs_dweight: bool, needs_dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    dweight = x.new_empty(x.shape[-1] if needs_dweight else 0, dtype=parameter_dtype)
    dbias = x.new_empty(x.shape[-1] if needs_dbias else 0, dtype=parameter_dtype)
    return dx, dweight, dbias


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # no zeros for mean and rstd


def _fwd_gradient(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    x, weight, mean, rstd = ctx.saved_tensors
    _, needs_dweight, needs_dbias, _ = ctx.needs_input_grad
    dx, dweight, dbias = layer_norm_bwd(dy, x, weight, mean, rstd, needs_dweight, needs_dbias)
    return dx, dweight if needs_dweight else None, dbias if needs_dbias else None, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, x, weight, mean, rstd, *ctx.needs = inputs
    ctx.save_for_backward(dy, x, weight, mean, rstd)


def _bwd_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, weight, mean, rstd = ctx.saved_tensors

    def backward(dy: Tensor, x: Tensor, *weight: Tensor) -> tuple[Tensor, ...]:
        return _bwd_definition(dy, x, weight[0] if weight else None, mean, rstd, *ctx.needs)

    inputs = (dy, x) if weight is None else (dy, x, weight)
    d_dy, d_x, *d_weight = library.vjp(backward, inputs, grads)
    return d_dy, d_x, d_weight[0] if d_weight else None, None, None, None, None


def _bwd_definition(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, needs_dweight: bool, needs_dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward, where mean and rstd follow from x, so that their share of the derivative is taken through x."""
    mean, rstd = norms.statistics_that_follow(x, mean, rstd)
    return reference.layer_norm_bwd(dy, x, weight, mean, rstd, needs_dweight, needs_dbias)


layer_norm_fwd = library.define(
    "layer_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
    fallback=aten.layer_norm_fwd,
    native=native.layer_norm_fwd,
    fake=_fwd_fake,
)
layer_norm_bwd = library.define(
    "layer_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, bool needs_dweight,"
    " bool needs_dbias) -> (Tensor, Tensor, Tensor)",
    fallback=aten.layer_norm_bwd,
    fake=_bwd_fake,
)
library.differentiate("layer_norm_fwd", _fwd_gradient, _save_fwd, reference.layer_norm_fwd)
library.differentiate("layer_norm_bwd", _bwd_gradient, _save_bwd, _bwd_definition)
