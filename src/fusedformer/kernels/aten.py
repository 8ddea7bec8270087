"""Every op through PyTorch's own fused kernels: what runs where there is no kernel of ours, the CPU above all.

The same functions as kernels/reference.py, several times faster than it, since ATen reads and writes each element once.
Where ATen's answer differs from the definition (a softmax row of -inf alone, the far tails of GELU's gradient, empty
rows), it is mended here. Statistics are fp32 whatever the input, as everywhere. Attention: attention/aten.py.
"""

import math

import torch
from torch import Tensor

from fusedformer.kernels import reference

_aten = torch.ops.aten


def layer_norm_fwd(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.layer_norm_fwd`."""
    if x.numel() == 0:
        return reference.layer_norm_fwd(x, weight, bias, eps)
    wide = [_widen(tensor, x) for tensor in (x, weight, bias)]
    y, mean, rstd = _aten.native_layer_norm(wide[0], x.shape[-1:], wide[1], wide[2], eps)
    return y.to(x.dtype).contiguous(), mean.squeeze(-1), rstd.squeeze(-1)


def layer_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, needs_dweight: bool, needs_dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.layer_norm_bwd`."""
    if x.numel() == 0 or x.shape[-1] == 1:  # dx of a single feature is 0, where ATen leaves rounding errors
        return reference.layer_norm_bwd(dy, x, weight, mean, rstd, needs_dweight, needs_dbias)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    if weight is None and (needs_dweight or needs_dbias):  # ATen asks for a weight then
        weight = x.new_ones(x.shape[-1])
    dy_wide, x_wide, weight_wide = (_widen(tensor, x) for tensor in (dy, x, weight))
    needed = [True, needs_dweight, needs_dbias]
    gradients = _aten.native_layer_norm_backward(
        dy_wide, x_wide, x.shape[-1:], mean.unsqueeze(-1), rstd.unsqueeze(-1), weight_wide, weight_wide, needed
    )
    dx, dweight, dbias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx.to(x.dtype).contiguous(), dweight.to(parameter_dtype), dbias.to(parameter_dtype)


def rms_norm_fwd(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference.rms_norm_fwd`."""
    if x.numel() == 0:
        return reference.rms_norm_fwd(x, weight, eps)
    y, rstd = _aten._fused_rms_norm(_widen(x, x), x.shape[-1:], _widen(weight, x), eps)
    return y.to(x.dtype).contiguous(), rstd.squeeze(-1)


def rms_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, needs_dweight: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.rms_norm_bwd`, which ATen has no kernel for on the CPU."""
    return reference.rms_norm_bwd(dy, x, weight, rstd, needs_dweight)


def add_layer_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, seed: Tensor | None,
    eps: float, dropout_p: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.add_layer_norm_fwd`."""
    return reference.add_norm_fwd(layer_norm_fwd, x, residual, (weight, bias), seed, eps, dropout_p)


def add_layer_norm_bwd(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, seed: Tensor | None,
    dropout_p: float, needs_dweight: bool, needs_dbias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.add_layer_norm_bwd`."""
    needs = (needs_dweight, needs_dbias)
    return reference.add_norm_bwd(layer_norm_bwd, dy, ds, s, weight, (mean, rstd), seed, dropout_p, needs)


def add_rms_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, seed: Tensor | None, eps: float, dropout_p: float
) -> tuple[Tensor, ...]:
    """As `reference.add_rms_norm_fwd`."""
    return reference.add_norm_fwd(rms_norm_fwd, x, residual, (weight,), seed, eps, dropout_p)


def add_rms_norm_bwd(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None, rstd: Tensor, seed: Tensor | None,
    dropout_p: float, needs_dweight: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.add_rms_norm_bwd`."""
    return reference.add_norm_bwd(rms_norm_bwd, dy, ds, s, weight, (rstd,), seed, dropout_p, (needs_dweight,))


def softmax_fwd(x: Tensor) -> Tensor:
    """As `reference.softmax_fwd`."""
    return _mend_rows(torch.softmax(x, dim=-1), x, 0.0)


def log_softmax_fwd(x: Tensor) -> Tensor:
    """As `reference.log_softmax_fwd`."""
    return _mend_rows(torch.log_softmax(x, dim=-1), x, -math.inf)


def log_softmax_bwd(dy: Tensor, y: Tensor) -> Tensor:
    """As `reference.log_softmax_bwd`."""
    return _aten._log_softmax_backward_data(dy, y, -1, y.dtype).contiguous()


def _mend_rows(y: Tensor, x: Tensor, of_nothing: float) -> Tensor:
    """`y`, which ATen computed of `x`, with `of_nothing` in place of the NaN of rows of -inf alone."""
    # Such a row is NaN in every place, so the first place tells whether any row needs a second look. Asking costs less
    # than the look on the CPU alone: another device would have to be waited for.
    if y.is_cpu and not y[..., :1].isnan().any():
        return y.contiguous()
    return y.masked_fill((x == -math.inf).all(-1, keepdim=True), of_nothing).contiguous()


def softmax_bwd(dy: Tensor, y: Tensor) -> Tensor:
    """As `reference.softmax_bwd`."""
    return _aten._softmax_backward_data(dy, y, -1, y.dtype).contiguous()


def cross_entropy_fwd(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.cross_entropy_fwd`; on the CPU, where a look at the targets is cheap, they are checked."""
    if target.is_cpu:
        classes = logits.shape[-1]
        wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
        if len(wrong) > 0:
            expected = f"expected 0 to {classes - 1}, or {ignore_index} of rows to ignore"
            raise ValueError(f"cross_entropy: target has {wrong[0].item()}, {expected}")
    if weight is not None or label_smoothing > 0:
        return reference.cross_entropy_fwd(logits, target, weight, ignore_index, label_smoothing)
    index, kept, _, is_class = reference.labels(logits, target, None, ignore_index)
    wide = logits.to(is_class.dtype)
    maximum = wide.amax(-1)
    total = (wide - maximum.unsqueeze(-1)).exp_().sum(-1)
    lse = maximum + total.log()
    loss = is_class * (maximum - wide.gather(-1, index).squeeze(-1) + total.log())
    return loss.masked_fill(~kept, 0.0), lse.masked_fill(~kept, 0.0), maximum, total


def cross_entropy_reduced_fwd(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `reference.cross_entropy_reduced_fwd`."""
    loss, lse, maximum, total = cross_entropy_fwd(logits, target, weight, ignore_index, label_smoothing)
    loss, scales = reference.reduced_loss(loss, lse, target, weight, ignore_index, z_loss, mean)
    return loss, lse, maximum, total, scales


def cross_entropy_bwd(
    dloss: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, weight: Tensor | None, maximum: Tensor,
    total: Tensor, ignore_index: int, label_smoothing: float,
) -> Tensor:  # fmt: skip
    """As `reference.cross_entropy_bwd`, in place: one tensor of the size of the logits."""
    if weight is not None or label_smoothing > 0:
        settings = ignore_index, label_smoothing
        return reference.cross_entropy_bwd(dloss, dlse, logits, target, weight, maximum, total, *settings)
    index, kept, _, is_class = reference.labels(logits, target, None, ignore_index)
    at_target = dloss * is_class
    scale = at_target if dlse is None else at_target + dlse
    dlogits = (logits.to(is_class.dtype) - maximum.unsqueeze(-1)).exp_().mul_((scale / total).unsqueeze(-1))
    dlogits.scatter_add_(-1, index, -at_target.unsqueeze(-1)).masked_fill_(~kept.unsqueeze(-1), 0.0)
    return dlogits.to(logits.dtype).contiguous()


def gelu_fwd(x: Tensor, tanh: bool) -> Tensor:
    """As `reference.gelu_fwd`."""
    approximate = "tanh" if tanh else "none"
    y = torch.nn.functional.gelu(x, approximate=approximate)
    if is_known_finite(y):
        return y.contiguous()
    # ATen multiplies infinity by 0, and overflows beside it, where y is 0 or x since long.
    near = x.clamp(-100.0, 100.0)
    return torch.where(x > near, x, torch.nn.functional.gelu(near, approximate=approximate)).contiguous()


def gelu_bwd(dy: Tensor, x: Tensor, tanh: bool) -> Tensor:
    """As `reference.gelu_bwd`."""
    approximate = "tanh" if tanh else "none"
    dx = _aten.gelu_backward(dy, x, approximate=approximate)
    if not is_known_finite(dx):
        dx = _aten.gelu_backward(dy, x.clamp(-100.0, 100.0), approximate=approximate)
    return dx.contiguous()


def bias_activation_fwd(x: Tensor, bias: Tensor, activation: int) -> Tensor:
    """As `reference.bias_activation_fwd`."""
    return _activate(_sum(x, bias), activation).to(x.dtype).contiguous()


def bias_activation_bwd(
    dy: Tensor, x: Tensor, bias: Tensor, activation: int, needs_dbias: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.bias_activation_bwd`."""
    z = _sum(x, bias)
    dx = _input_gradient(dy.to(z.dtype), z, activation)
    dbias = reference.column_sums(dx, bias) if needs_dbias else bias.new_empty(0)
    return dx.to(x.dtype).contiguous(), dbias


def glu_fwd(x: Tensor, up: Tensor | None, activation: int) -> Tensor:
    """As `reference.glu_fwd`."""
    gate, up = reference.gate_and_up(x, up)
    return (_activate(gate.to(reference.accumulate_dtype(x.dtype)), activation) * up).to(x.dtype).contiguous()


def glu_bwd(dy: Tensor, x: Tensor, up: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:
    """As `reference.glu_bwd`."""
    gate, given_or_half = reference.gate_and_up(x, up)
    wide = reference.accumulate_dtype(x.dtype)
    gate, dy = gate.to(wide), dy.to(wide)
    dgate = _input_gradient(dy * given_or_half, gate, activation).to(x.dtype)
    return reference.glu_gradients(dgate, (dy * _activate(gate, activation)).to(x.dtype), up)


def _sum(x: Tensor, bias: Tensor) -> Tensor:
    return x.to(reference.accumulate_dtype(x.dtype)) + bias


def _activate(x: Tensor, activation: int) -> Tensor:
    if activation == reference.RELU:
        return torch.relu(x)
    if activation != reference.SILU:
        return gelu_fwd(x, activation == reference.GELU_TANH)
    y = torch.nn.functional.silu(x)
    return y if is_known_finite(y) else torch.nn.functional.silu(x.clamp(min=-1000.0))  # -inf * 0 is NaN


def _input_gradient(dy: Tensor, x: Tensor, activation: int) -> Tensor:
    if activation == reference.RELU:
        return _aten.threshold_backward(dy, x, 0.0)
    if activation != reference.SILU:
        return gelu_bwd(dy, x, activation == reference.GELU_TANH)
    dx = _aten.silu_backward(dy, x)
    return dx if is_known_finite(dx) else _aten.silu_backward(dy, x.clamp(-1000.0, 1000.0))


def is_known_finite(x: Tensor) -> bool:
    """Whether all of `x` is finite, at the price of one sum; unknown on devices that would have to be waited for."""
    if not x.is_cpu:
        return False
    return math.isfinite(x.sum(dtype=torch.float32 if x.dtype == torch.float16 else None))


def _widen(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(reference.accumulate_dtype(x.dtype))
