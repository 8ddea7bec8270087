"""Ops that PyTorch computes and differentiates by itself just as they are defined here, for the CPU.

A gradient written in Python costs a small tensor several times what its kernel does, and PyTorch's own are in C++. Each
function takes its op's arguments and gives what a user sees of its outputs, or None where the op itself has to compute:
where PyTorch's answer or gradient differs from the definition (GELU far out, rows of -inf alone, empty rows), where its
output is not contiguous, or where it keeps more for the backward than that is worth. Its errors mean the same: the op's
own checks say in words what is wrong.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from fusedformer.kernels import reference

_WIDE = (torch.float32, torch.float64)  # of what statistics are kept in

# An activation is 0 or x long before |x| is that, and ATen overflows long after.
_FLAT_GELU, _FLAT_SILU = 100.0, 1000.0

_SMALL = 2**20  # elements up to which time is worth more than a tensor of this size, kept for the backward
_TINY = 2**12  # elements that are summed faster than some of them are chosen


def layer_norm_fwd(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
    """y of `layer_norm_fwd`."""
    if not _has_features(x) or not 0 <= eps < math.inf:
        return None
    return torch.layer_norm(x, (x.size(-1),), weight, bias, eps)


def add_layer_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor] | None:
    """y and s of `add_layer_norm_fwd`, without dropout."""
    if (s := _sum(x, residual)) is None or (y := layer_norm_fwd(s, weight, bias, eps)) is None:
        return None
    return y, s


def rms_norm_fwd(x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor | None:
    """y of `rms_norm_fwd`; None is the default eps."""
    if not _has_features(x) or x.numel() > _SMALL or (eps is not None and not 0 <= eps < math.inf):
        return None
    return torch.rms_norm(x, (x.size(-1),), weight, eps)


def add_rms_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor] | None:
    """y and s of `add_rms_norm_fwd`, without dropout."""
    if (s := _sum(x, residual)) is None or (y := rms_norm_fwd(s, weight, eps)) is None:
        return None
    return y, s


def softmax_fwd(x: Tensor) -> Tensor | None:
    """y of `softmax_fwd`."""
    return _unless_nan(torch.softmax(x, -1)) if x.dim() else None


def log_softmax_fwd(x: Tensor) -> Tensor | None:
    """y of `log_softmax_fwd`."""
    return _unless_nan(torch.log_softmax(x, -1)) if x.dim() else None


def gelu_fwd(x: Tensor, approximate: str) -> Tensor | None:
    """y of `gelu_fwd`."""
    is_same = x.is_contiguous() and _is_within(_FLAT_GELU, x)
    return functional.gelu(x, approximate=approximate) if is_same else None


def bias_activation_fwd(x: Tensor, bias: Tensor, activation: int) -> Tensor | None:
    """y of `bias_activation_fwd` with a GELU."""
    if activation == reference.RELU or x.dtype not in _WIDE or x.dtype != bias.dtype:
        return None
    if bias.dim() != 1 or x.size(-1) != bias.size(0):
        return None
    return gelu_fwd(x + bias, "tanh" if activation == reference.GELU_TANH else "none")


def glu_fwd(x: Tensor, up: Tensor | None, activation: int) -> Tensor | None:
    """y of `glu_fwd` with SiLU."""
    if activation != reference.SILU or x.dtype not in _WIDE or x.numel() > _SMALL:
        return None
    if up is None and x.size(-1) % 2:
        return None
    gate, up = x.chunk(2, -1) if up is None else (x, up)
    if gate.size() != up.size() or gate.dtype != up.dtype or not _is_within(_FLAT_SILU, gate):
        return None
    y = functional.silu(gate) * up
    return y if y.is_contiguous() else None


def cross_entropy_fwd(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float, reduction: str
) -> Tensor | None:
    """Loss of `cross_entropy_fwd`, reduced, where all rows count alike."""
    if weight is not None or smoothing != 0 or logits.dtype not in _WIDE or not 0 < logits.numel() <= _SMALL:
        return None
    if target.size() != logits.size()[:-1] or (target == ignore_index).any():  # PyTorch lets NaN out of ignored rows
        return None
    rows, classes = logits.reshape(-1, logits.size(-1)), target.reshape(-1)
    loss = functional.cross_entropy(rows, classes, ignore_index=ignore_index, reduction=reduction)
    return loss.reshape(target.shape) if reduction == "none" else loss


def _sum(x: Tensor, residual: Tensor) -> Tensor | None:
    if x.dtype != residual.dtype or x.size() != residual.size():
        return None
    s = x + residual
    return s if s.is_contiguous() else None


def _has_features(x: Tensor) -> bool:
    """Two at least: ATen leaves rounding errors in the gradient of a single one, which is 0."""
    return x.dtype in _WIDE and x.numel() > 0 and x.size(-1) > 1


def _unless_nan(y: Tensor) -> Tensor | None:
    """A row of -inf alone is NaN in every place, so one place of each tells whether there are such rows."""
    if y.numel() == 0:
        return None
    first = y if y.numel() <= _TINY else y.select(-1, 0)
    return None if math.isnan(first.detach().sum().item()) else y


def _is_within(bound: float, x: Tensor) -> bool:
    if not x.numel():
        return False
    least, largest = torch.aminmax(x.detach() if x.requires_grad else x)
    return -bound <= least.item() and largest.item() <= bound
