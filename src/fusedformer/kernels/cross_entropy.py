"""Cross entropy of logits and class indices: loss = logsumexp(x) - x[target], with weights, label smoothing and z-loss.

M rows (all leading dimensions), V classes; t target, w class weights, s label smoothing.
Memory traffic: forward reads the logits, M V elements; backward reads them again and writes their gradient, 2 M V. What
is kept between the two is two numbers a row, and the logits are never written to.
Device code: csrc/cross_entropy.cu. Sources: Szegedy et al., "Rethinking the Inception Architecture for Computer
Vision", 2016, section 7 (smoothing); Chowdhery et al., "PaLM", 2022, section 5 (z-loss).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, reference

REDUCTIONS = ("none", "mean", "sum")
MAX_CLASSES = 2**28
"""That the grid of the backward kernel reaches."""


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of each row of `logits` with the class that `target` names.

    As `torch.nn.functional.cross_entropy` with class indices, but the classes are the last dimension whatever the
    number of dimensions. With p = softmax(x) of a row x, and w = 1 without `weight`, its loss is

        (1 - s) w[t] (-log p[t]) + s / V sum_j w[j] (-log p[j])

    0 where t is `ignore_index`. "mean" is the sum of the losses over the sum of w[t], both over rows that are not
    ignored: NaN if all are.

    `z_loss` adds z_loss * logsumexp(x)^2, which keeps the logits from drifting. Class weights do not touch it, and its
    "mean" is over the number of rows that are not ignored.

    Args:
        logits: (..., V), float32, float16 or bfloat16 (on the CPU float64 too), V from 1 to 2^28. Any strides: read in
            place where V is contiguous, copied where it is not.
        target: (...), any integer type: classes from 0 to V - 1, or `ignore_index`.
        weight: (V,), a factor for each class, of any of these dtypes; it has no gradient.
        ignore_index: the target of rows without loss and with gradient 0, whatever their logits are, NaN too.
        label_smoothing: s, from 0 to 1.
        z_loss: 1e-4 in PaLM.
        reduction: "mean", "sum", or "none" for the loss of each row.

    Returns:
        Tensor of shape () or, with "none", (...), of the dtype of the logits, or float32 under autocast, as PyTorch has
        it. All sums are computed in float32 (float64 of float64), reductions over rows too; only their result is
        rounded.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a number is out of its range, or, on the CPU, a target is
            neither a class nor `ignore_index`. On a GPU, where it would have to be waited for, such a target makes its
            row's loss and gradient NaN; nothing outside the row is read.

    Sources: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7 (smoothing);
    Chowdhery et al., "PaLM", 2022, section 5 (z-loss).
    """
    is_usual = weight is None and 0 <= label_smoothing <= 1 and 0 <= z_loss < math.inf and reduction in REDUCTIONS
    if is_usual and reduction != "none" and not is_compiling():
        is_mean = reduction == "mean"
        loss = eager.cross_entropy(logits, target, None, ignore_index, label_smoothing, z_loss, is_mean)
        if loss is not None:
            return _rounded(loss, logits)
    if z_loss == 0:
        loss = cross_entropy_fwd.natively(logits, target, weight, ignore_index, label_smoothing, reduction)
        if loss is not None:
            return loss
    if is_usual:
        settings = (ignore_index, label_smoothing)
        if reduction == "none":
            results = cross_entropy_fwd.by_kernel(logits, target, None, *settings)
        else:
            results = cross_entropy_reduced_fwd.by_kernel(logits, target, None, *settings, z_loss, reduction == "mean")
        if results is not None:
            loss = _with_z_loss(results, z_loss) if reduction == "none" else results[0]
            return _rounded(loss, logits)
    _check(logits, target, weight, label_smoothing, z_loss, reduction)
    if not hasattr(ignore_index, "__index__"):
        raise ValueError(f"cross_entropy: ignore_index is {ignore_index!r}, expected an int")
    target = target.long()
    if weight is not None:
        weight = weight.to(reference.accumulate_dtype(logits.dtype))
    arguments = (logits, target, weight, int(ignore_index), float(label_smoothing))
    if reduction == "none":
        loss = _with_z_loss(cross_entropy_fwd(*arguments), z_loss)
    else:
        loss = cross_entropy_reduced_fwd(*arguments, float(z_loss), reduction == "mean")[0]
    return _rounded(loss, logits)


def _rounded(loss: Tensor, logits: Tensor) -> Tensor:
    """The loss in the dtype of the logits, unless autocast has it in float32."""
    device = logits.device.type
    if loss.dtype == logits.dtype:
        return loss
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has none
    return loss if is_cast else loss.to(logits.dtype)


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, z_loss: float, reduction: str
) -> None:
    library.check_tensor("cross_entropy", "logits", logits)
    library.check_tensor("cross_entropy", "target", target)
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        dtype = library.short(target.dtype)
        raise ValueError(f"cross_entropy: target is {dtype}, expected integers: class probabilities are not supported")
    if logits.dim() == 0 or target.shape != logits.shape[:-1]:
        shapes = f"logits have shape {tuple(logits.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"cross_entropy: {shapes}: expected (..., V) and (...)")
    if not 1 <= logits.shape[-1] <= MAX_CLASSES:
        raise ValueError(f"cross_entropy: logits have {logits.shape[-1]} classes, expected 1 to {MAX_CLASSES}")
    if weight is not None:
        library.check_tensor("cross_entropy", "weight", weight)
        if weight.shape != logits.shape[-1:]:
            shape = tuple(weight.shape)
            raise ValueError(f"cross_entropy: weight has shape {shape}, logits have {logits.shape[-1]} classes")
        if weight.requires_grad:
            raise ValueError("cross_entropy: weight requires a gradient, and has none: pass weight.detach()")
    library.check_dtype("cross_entropy", logits=logits, weight=weight)
    library.check_device("cross_entropy", logits=logits, target=target, weight=weight)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected 0 to 1")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"cross_entropy: z_loss is {z_loss}, expected a finite number >= 0")
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction is {reduction!r}, expected one of {REDUCTIONS}")


def _with_z_loss(results: tuple[Tensor, ...], z_loss: float) -> Tensor:
    """The loss of each row; an ignored row has 0 of either."""
    loss, lse, *_ = results
    return loss + z_loss * lse.square() if z_loss else loss


def _fwd_fake(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    dtype = reference.accumulate_dtype(logits.dtype)
    return tuple(logits.new_empty(logits.shape[:-1], dtype=dtype) for _ in range(4))


def _reduced_fwd_fake(logits: Tensor, target: Tensor, weight: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    rows = _fwd_fake(logits, target, weight, 0, 0.0)
    return rows[0].new_empty(()), *rows[1:], rows[0].new_empty(2)


def _bwd_fake(dloss: Tensor, dlse: Tensor | None, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, *ctx.settings = inputs
    _, _, maximum, total = output
    ctx.save_for_backward(logits, target, weight, maximum, total)
    ctx.mark_non_differentiable(maximum, total)
    ctx.set_materialize_grads(False)  # no zeros for lse where there is no z-loss


def _fwd_gradient(ctx: Any, dloss: Tensor | None, dlse: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    dlogits = None
    if dloss is not None or dlse is not None:
        dloss = torch.zeros_like(dlse) if dloss is None and dlse is not None else dloss
        dlogits = cross_entropy_bwd(dloss, dlse, *ctx.saved_tensors, *ctx.settings)
    return dlogits, None, None, None, None


def _save_reduced_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, weight, *ctx.settings, ctx.z_loss, ctx.mean = inputs
    _, lse, maximum, total, scales = output
    ctx.save_for_backward(logits, target, weight, maximum, total, scales, lse if ctx.z_loss else None)
    ctx.mark_non_differentiable(maximum, total, scales)
    ctx.set_materialize_grads(False)


def _reduced_fwd_gradient(ctx: Any, dloss: Tensor | None, dlse: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """That of the rows, each of which the loss has its share of; `dlse` comes from the backward's own derivative."""
    *saved, scales, lse = ctx.saved_tensors
    d_rows = None
    if dloss is not None:
        d_rows = (dloss * scales[0] if ctx.mean else dloss).expand(saved[1].shape)
        if ctx.z_loss:
            of_penalty = dloss * scales[1] * lse
            dlse = of_penalty if dlse is None else dlse + of_penalty
    elif dlse is not None:
        d_rows = torch.zeros_like(dlse)
    dlogits = None if d_rows is None else cross_entropy_bwd(d_rows, dlse, *saved, *ctx.settings)
    return dlogits, *(None,) * 6


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dloss, dlse, logits, target, weight, _, _, *ctx.settings = inputs
    ctx.save_for_backward(dloss, dlse, logits, target, weight)


def _bwd_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dloss, dlse, logits, target, weight = ctx.saved_tensors

    def backward(dloss: Tensor, logits: Tensor, *dlse: Tensor) -> Tensor:
        return _bwd_of_logits(dloss, dlse[0] if dlse else None, logits, target, weight, *ctx.settings)

    inputs = (dloss, logits) if dlse is None else (dloss, logits, dlse)
    d_dloss, d_logits, *d_dlse = library.vjp(backward, inputs, grad)
    return d_dloss, d_dlse[0] if d_dlse else None, d_logits, *(None,) * 6


def _bwd_of_logits(
    dloss: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, weight: Tensor | None, *settings: Any
) -> Tensor:
    """The backward, where maximum and sum follow from the logits, so that their derivatives are taken through them."""
    _, _, maximum, total = reference.cross_entropy_fwd(logits, target, weight, *settings)
    return reference.cross_entropy_bwd(dloss, dlse, logits, target, weight, maximum, total, *settings)


def _bwd_definition(
    dloss: Tensor,
    dlse: Tensor | None,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    total: Tensor,
    *settings: Any,
) -> Tensor:
    return _bwd_of_logits(dloss, dlse, logits, target, weight, *settings)


_SETTINGS = "int ignore_index, float label_smoothing"
cross_entropy_fwd = library.define(
    f"cross_entropy_fwd(Tensor logits, Tensor target, Tensor? weight, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
    fallback=aten.cross_entropy_fwd,
    fake=_fwd_fake,
    native=native.cross_entropy_fwd,
)
cross_entropy_reduced_fwd = library.define(
    f"cross_entropy_reduced_fwd(Tensor logits, Tensor target, Tensor? weight, {_SETTINGS}, float z_loss, bool mean)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fallback=aten.cross_entropy_reduced_fwd,
    fake=_reduced_fwd_fake,
)
cross_entropy_bwd = library.define(
    "cross_entropy_bwd(Tensor dloss, Tensor? dlse, Tensor logits, Tensor target, Tensor? weight, Tensor maximum,"
    f" Tensor total, {_SETTINGS}) -> Tensor",
    fallback=aten.cross_entropy_bwd,
    fake=_bwd_fake,
)
library.differentiate("cross_entropy_fwd", _fwd_gradient, _save_fwd, reference.cross_entropy_fwd)
library.differentiate(
    "cross_entropy_reduced_fwd", _reduced_fwd_gradient, _save_reduced_fwd, reference.cross_entropy_reduced_fwd
)
library.differentiate("cross_entropy_bwd", _bwd_gradient, _save_bwd, _bwd_definition)
