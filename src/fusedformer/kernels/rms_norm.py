"""RMSNorm over the last dimension: y = x / sqrt(mean(x**2) + eps) * weight.

M rows (all leading dimensions), N features.
Memory traffic: forward reads x and writes y, 2 M N elements; backward reads dy and x and writes dx, 3 M N. It makes the
gradient of weight on the way, but where rows are no multiple of 16 bytes, or too long for a cluster: there it reads dy
and x again, 2 M N.
Device code: csrc/rms_norm.cu over csrc/norm.cuh. Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, norms, reference


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    """Divide each row of `x` by the root of its mean square, then scale.

    Args:
        x: (..., N), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        weight: (N,), any of these dtypes; ones if None.
        eps: added to the mean square. None is PyTorch's default: 2**-23, float32's resolution, for all but float64,
            which has its own.

    Returns:
        Tensor of x's shape and dtype. Statistics are computed in float32 whatever the input.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or eps is not a finite number >= 0.

    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
    """
    usual_eps = norms.FLOAT32_EPS if eps is None else eps
    if not is_compiling() and (y := eager.rms_norm(x, weight, usual_eps)) is not None:
        return y
    if (y := rms_norm_fwd.natively(x, weight, eps)) is not None:
        return y
    if (results := rms_norm_fwd.by_kernel(x, weight, usual_eps)) is not None:
        return results[0]
    norms.check("rms_norm", x, weight, None, 0.0 if eps is None else eps)
    weight, _ = norms.parameters_of_one_dtype(x, weight, None)
    y, _ = rms_norm_fwd(x, weight, norms.default_eps(x, eps))
    return y


def _fwd_fake(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(x.shape[:-1], dtype=reference.accumulate_dtype(x.dtype))


def _bwd_fake(dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, needs_dweight: bool) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    return dx, x.new_empty(x.shape[-1] if needs_dweight else 0, dtype=parameter_dtype)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    _, rstd = output
    ctx.save_for_backward(x, weight, rstd)
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)  # no zeros for rstd


def _fwd_gradient(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None
    needs_dweight = ctx.needs_input_grad[1]
    dx, dweight = rms_norm_bwd(dy, *ctx.saved_tensors, needs_dweight)
    return dx, dweight if needs_dweight else None, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.needs_dweight = inputs
    ctx.save_for_backward(*tensors)


def _bwd_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, weight, rstd = ctx.saved_tensors

    def backward(dy: Tensor, x: Tensor, *weight: Tensor) -> tuple[Tensor, ...]:
        return _bwd_definition(dy, x, weight[0] if weight else None, rstd, ctx.needs_dweight)

    inputs = (dy, x) if weight is None else (dy, x, weight)
    d_dy, d_x, *d_weight = library.vjp(backward, inputs, grads)
    return d_dy, d_x, d_weight[0] if d_weight else None, None, None


def _bwd_definition(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, needs_dweight: bool
) -> tuple[Tensor, Tensor]:
    """The backward, where rstd follows from x, so that its share of the derivative is taken through x."""
    (rstd,) = norms.statistics_that_follow(x, rstd)
    return reference.rms_norm_bwd(dy, x, weight, rstd, needs_dweight)


rms_norm_fwd = library.define(
    "rms_norm_fwd(Tensor x, Tensor? weight, float eps) -> (Tensor, Tensor)",
    fallback=aten.rms_norm_fwd,
    native=native.rms_norm_fwd,
    fake=_fwd_fake,
)
rms_norm_bwd = library.define(
    "rms_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, bool needs_dweight) -> (Tensor, Tensor)",
    fallback=aten.rms_norm_bwd,
    fake=_bwd_fake,
)
library.differentiate("rms_norm_fwd", _fwd_gradient, _save_fwd, reference.rms_norm_fwd)
library.differentiate("rms_norm_bwd", _bwd_gradient, _save_bwd, _bwd_definition)
