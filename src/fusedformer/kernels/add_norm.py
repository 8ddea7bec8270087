"""What stands between the blocks of a transformer, in one pass: s = dropout(x) + residual, and a norm of s.

M rows (all leading dimensions), N features.
Memory traffic: forward reads x and residual and writes s and y, 4 M N elements; backward reads dy, ds and s and writes
dresidual, 4 M N, and dx where dropout makes it another tensor, 5 M N; the gradients of weight and bias as `layer_norm`.
Device code: csrc/add_layer_norm.cu and csrc/add_rms_norm.cu over csrc/norm.cuh; dropout: csrc/dropout.cuh.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, norms, reference


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """s = dropout(x) + residual and its LayerNorm.

    A pre-norm block uses both results, a post-norm block the first. s is rounded to x's dtype before it is normalised,
    so that the first is `layer_norm` of the second.

    Args:
        x: (..., N), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        residual: of x's shape and dtype, any strides.
        weight: (N,), any of these dtypes; ones if None.
        bias: (N,), any of these dtypes; zeros if None.
        eps: added to the variance.
        dropout_p: probability, less than 1, with which an element of x is dropped; the others grow by
            1 / (1 - dropout_p).
        seed: (1,) int64 on x's device, of dropout: the same elements are dropped for the same seed, on every device.
            Drawn from PyTorch's generator if None. Nothing else is kept for the backward.

    Returns:
        The norm of s, and s; tensors of x's shape and dtype, each with a gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, eps is not a finite number >= 0, dropout_p is not in [0, 1).

    Source: Ba, Kiros, Hinton, "Layer Normalization", 2016; Srivastava et al., "Dropout", 2014; Xiong et al., "On Layer
    Normalization in the Transformer Architecture", 2020 (pre-norm and post-norm).
    """
    if dropout_p == 0 and seed is None:
        if not is_compiling():
            results = eager.add_layer_norm(x, residual, weight, bias, None, eps, 0.0)
            if results is not None:
                return results
        results = add_layer_norm_fwd.natively(x, residual, weight, bias, eps)
        if results is not None:
            return results
        if (results := add_layer_norm_fwd.by_kernel(x, residual, weight, bias, None, eps, 0.0)) is not None:
            return results[0], results[1]
    norms.check("add_layer_norm", x, weight, bias, eps)
    norms.check_residual("add_layer_norm", x, residual)
    seed = norms.dropout_seed("add_layer_norm", x, seed, dropout_p)
    weight, bias = norms.parameters_of_one_dtype(x, weight, bias)
    return _computed(eager.add_layer_norm, add_layer_norm_fwd, x, residual, weight, bias, seed, eps, dropout_p)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """s = dropout(x) + residual and its RMSNorm.

    Args, returned tensors and errors are those of `add_layer_norm`, with no bias; `eps` is as in `rms_norm`.

    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    if dropout_p == 0 and seed is None:
        default = norms.FLOAT32_EPS if eps is None else eps
        if not is_compiling():
            results = eager.add_rms_norm(x, residual, weight, None, default, 0.0)
            if results is not None:
                return results
        results = add_rms_norm_fwd.natively(x, residual, weight, eps)
        if results is not None:
            return results
        if (results := add_rms_norm_fwd.by_kernel(x, residual, weight, None, default, 0.0)) is not None:
            return results[0], results[1]
    norms.check("add_rms_norm", x, weight, None, 0.0 if eps is None else eps)
    norms.check_residual("add_rms_norm", x, residual)
    seed = norms.dropout_seed("add_rms_norm", x, seed, dropout_p)
    weight, _ = norms.parameters_of_one_dtype(x, weight, None)
    eps = norms.default_eps(x, eps)
    return _computed(eager.add_rms_norm, add_rms_norm_fwd, x, residual, weight, seed, eps, dropout_p)


def _computed(at_once: Callable[..., Any], op: library.Op, *arguments: Any) -> tuple[Tensor, Tensor]:
    """y and s: past the dispatcher, or by the op."""
    results = None if is_compiling() else at_once(*arguments)
    return op(*arguments)[:2] if results is None else results


# The ops of both have the same form: fwd(x, residual, *parameters, seed, eps, dropout_p) gives y, s and a statistic for
# each parameter, bwd(dy, ds, s, weight, *statistics, seed, dropout_p, *needs) gives dx, dresidual and the parameters'.


def _fwd_fake(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    *parameters, _, _, _ = rest
    dtype = reference.accumulate_dtype(x.dtype)
    return y, torch.empty_like(y), *(x.new_empty(x.shape[:-1], dtype=dtype) for _ in parameters)


def _bwd_fake(dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    _, seed, _, needs = _split(rest)
    dresidual = torch.empty_like(s, memory_format=torch.contiguous_format)
    dx = s.new_empty(0) if seed is None else torch.empty_like(dresidual)
    dtype = s.dtype if weight is None else weight.dtype
    return dx, dresidual, *(s.new_empty(s.shape[-1] if needed else 0, dtype=dtype) for needed in needs)


def _split(rest: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Tensor | None, float, tuple[bool, ...]]:
    """Statistics, seed, dropout_p and needs, as they come last in the arguments of a backward."""
    count = len(rest) // 2 - 1
    return rest[:count], rest[count], rest[count + 1], rest[count + 2 :]


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, *_, seed, _, ctx.dropout_p = inputs
    _, s, *statistics = output
    ctx.save_for_backward(s, weight, *statistics, seed)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)  # no zeros for statistics, or for an output that nobody uses


def _fwd_gradient(backward: Any, ctx: Any, dy: Tensor | None, ds: Tensor | None, *_: Any) -> tuple[Any, ...]:
    _, _, *needs, _, _, _ = ctx.needs_input_grad
    if dy is None and ds is None:
        return (None,) * len(ctx.needs_input_grad)
    s, *saved = ctx.saved_tensors
    dy = torch.zeros_like(s) if dy is None else dy
    dx, dresidual, *gradients = backward(dy, ds, s, *saved, ctx.dropout_p, *needs)
    has_dropout = saved[-1] is not None
    gradients = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
    return (dx if has_dropout else dresidual), dresidual, *gradients, None, None, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, ds, s, weight, *rest = inputs
    statistics, seed, ctx.dropout_p, ctx.needs = _split(tuple(rest))
    ctx.save_for_backward(dy, ds, s, weight, *statistics, seed)


def _bwd_gradient(definition: Any, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    tensors, statistics = tensors[:4], tensors[4:]
    given = [index for index, tensor in enumerate(tensors) if tensor is not None]

    def backward(*inputs: Tensor) -> tuple[Tensor, ...]:
        by_index = dict(zip(given, inputs, strict=True))
        dy, ds, s, weight = (by_index.get(index) for index in range(4))
        return definition(dy, ds, s, weight, *statistics, seed, ctx.dropout_p, *ctx.needs)

    gradients = dict(zip(given, library.vjp(backward, [tensors[index] for index in given], grads), strict=True))
    return *(gradients.get(index) for index in range(4)), *(None,) * (len(statistics) + 2 + len(ctx.needs))


def _bwd_definition(
    backward: Any, dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """The backward, where statistics follow from s, so that their share of the derivative is taken through s."""
    statistics, seed, dropout_p, needs = _split(rest)
    statistics = norms.statistics_that_follow(s, *statistics)
    return backward(dy, ds, s, weight, *statistics, seed, dropout_p, *needs)


def _differentiate(name: str, bwd_op: library.Op, fwd: Any, bwd: Any) -> None:
    definition = functools.partial(_bwd_definition, bwd)
    library.differentiate(f"{name}_fwd", functools.partial(_fwd_gradient, bwd_op), _save_fwd, fwd)
    library.differentiate(f"{name}_bwd", functools.partial(_bwd_gradient, definition), _save_bwd, definition)


add_layer_norm_fwd = library.define(
    "add_layer_norm_fwd(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, Tensor? seed, float eps,"
    " float dropout_p) -> (Tensor, Tensor, Tensor, Tensor)",
    fallback=aten.add_layer_norm_fwd,
    native=native.add_layer_norm_fwd,
    fake=_fwd_fake,
)
add_layer_norm_bwd = library.define(
    "add_layer_norm_bwd(Tensor dy, Tensor? ds, Tensor s, Tensor? weight, Tensor mean, Tensor rstd, Tensor? seed,"
    " float dropout_p, bool needs_dweight, bool needs_dbias) -> (Tensor, Tensor, Tensor, Tensor)",
    fallback=aten.add_layer_norm_bwd,
    fake=_bwd_fake,
)
add_rms_norm_fwd = library.define(
    "add_rms_norm_fwd(Tensor x, Tensor residual, Tensor? weight, Tensor? seed, float eps, float dropout_p)"
    " -> (Tensor, Tensor, Tensor)",
    fallback=aten.add_rms_norm_fwd,
    native=native.add_rms_norm_fwd,
    fake=_fwd_fake,
)
add_rms_norm_bwd = library.define(
    "add_rms_norm_bwd(Tensor dy, Tensor? ds, Tensor s, Tensor? weight, Tensor rstd, Tensor? seed, float dropout_p,"
    " bool needs_dweight) -> (Tensor, Tensor, Tensor)",
    fallback=aten.add_rms_norm_bwd,
    fake=_bwd_fake,
)
_differentiate("add_layer_norm", add_layer_norm_bwd, reference.add_layer_norm_fwd, reference.add_layer_norm_bwd)
_differentiate("add_rms_norm", add_rms_norm_bwd, reference.add_rms_norm_fwd, reference.add_rms_norm_bwd)
