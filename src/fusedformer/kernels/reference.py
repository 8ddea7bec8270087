"""Every op in plain PyTorch: its specification, the oracle of its tests (in float64) and the CPU path.

Legend: N normalised or softmax dimension, V classes, B batch, S sequence, H heads, D head dimension.
Statistics and sums are fp32 whatever the input, float64 for a float64 input; outputs have the input's dtype and are
contiguous. Every function here is made of differentiable PyTorch, which is how the backward ops get a derivative.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusedformer.kernels.philox import philox_words

# The activations by number, as csrc/ops.h has them and the schemas pass them.
GELU_ERF, GELU_TANH, SILU, RELU = range(4)

# An activation's gate is 0 or 1 long before |x| is that; past it x**2 could overflow and turn 0 * inf into NaN.
_FLAT = {GELU_ERF: 100.0, GELU_TANH: 100.0, SILU: 1000.0}


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for float8, fp16, bf16 and fp32; float64 for float64."""
    return torch.float32 if dtype.itemsize == 1 else torch.promote_types(dtype, torch.float32)


def layer_norm_fwd(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) * rstd * weight + bias over the last dimension; also mean and rstd, of shape x.shape[:-1]."""
    wide = x.to(accumulate_dtype(x.dtype))
    mean = wide.mean(-1, keepdim=True)
    centred = wide - mean
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = centred * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).contiguous(), mean.squeeze(-1), rstd.squeeze(-1)


def layer_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, needs_dweight: bool, needs_dbias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight, dbias; the latter two are empty where they are not needed."""
    wide = accumulate_dtype(x.dtype)
    rows = dy.to(wide).flatten(0, -2) if dy.dim() > 1 else dy.to(wide).unsqueeze(0)
    x_hat = ((x.to(wide) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)).reshape(rows.shape)
    dx_hat = rows if weight is None else rows * weight
    projection = (dx_hat * x_hat).mean(-1, keepdim=True) * x_hat
    dx = (dx_hat - dx_hat.mean(-1, keepdim=True) - projection).reshape(x.shape) * rstd.unsqueeze(-1)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    none = x.new_empty(0, dtype=parameter_dtype)
    dweight = (rows * x_hat).sum(0).to(parameter_dtype) if needs_dweight else none
    dbias = rows.sum(0).to(parameter_dtype) if needs_dbias else none.clone()
    return dx.to(x.dtype).contiguous(), dweight, dbias


def rms_norm_fwd(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """y = x * rstd * weight over the last dimension, rstd = 1 / sqrt(mean(x**2) + eps); also rstd, x.shape[:-1]."""
    wide = x.to(accumulate_dtype(x.dtype))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = wide * rstd
    if weight is not None:
        y = y * weight
    return y.to(x.dtype).contiguous(), rstd.squeeze(-1)


def rms_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, needs_dweight: bool
) -> tuple[Tensor, Tensor]:
    """dx and dweight, which is empty where it is not needed."""
    wide = accumulate_dtype(x.dtype)
    x_hat = x.to(wide) * rstd.unsqueeze(-1)
    dy_wide = dy.to(wide)
    dx_hat = dy_wide if weight is None else dy_wide * weight
    dx = (dx_hat - (dx_hat * x_hat).mean(-1, keepdim=True) * x_hat) * rstd.unsqueeze(-1)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    if not needs_dweight:
        return dx.to(x.dtype).contiguous(), x.new_empty(0, dtype=parameter_dtype)
    products = dy_wide * x_hat
    dweight = products.flatten(0, -2).sum(0) if x.dim() > 1 else products
    return dx.to(x.dtype).contiguous(), dweight.to(parameter_dtype)


def dropout(x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """x / (1 - p), or 0 where an element is dropped, in float32 or wider; x itself without a seed.

    Element j of row i, rows numbered through all leading dimensions, has word j % 4 of Philox's counter (j // 4, i). It
    is kept where the word's upper 24 bits, as a fraction of 1, are at least p.
    """
    wide = x.to(accumulate_dtype(x.dtype))
    if seed is None:
        return wide
    n, device = x.shape[-1], x.device
    rows = torch.arange(math.prod(x.shape[:-1]), device=device).view(*x.shape[:-1], 1)
    words = philox_words(seed, torch.arange((n + 3) // 4, device=device), rows & 0xFFFFFFFF, rows >> 32)
    random = torch.stack(words, -1).flatten(-2)[..., :n]
    keep = (random >> 8).float() * 2.0**-24 >= torch.tensor(p, dtype=torch.float32)
    return torch.where(keep, wide / (1 - p), 0.0)


def add_norm_fwd(
    norm_fwd: Callable[..., tuple[Tensor, ...]], x: Tensor, residual: Tensor, parameters: Sequence[Tensor | None],
    seed: Tensor | None, eps: float, dropout_p: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """y, s and the statistics: s = dropout(x) + residual, rounded to x's dtype; y and the rest are norm_fwd's of s."""
    s = (x + residual if seed is None else dropout(x, seed, dropout_p) + residual).to(x.dtype).contiguous()
    y, *statistics = norm_fwd(s, *parameters, eps)
    return y, s, *statistics


def add_norm_bwd(
    norm_bwd: Callable[..., tuple[Tensor, ...]], dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None,
    statistics: Sequence[Tensor], seed: Tensor | None, dropout_p: float, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """dx, dresidual and the gradients of the parameters. Without dropout dx is dresidual, and empty here."""
    wide = accumulate_dtype(s.dtype)
    ds_of_norm, *gradients = norm_bwd(dy.to(wide), s.to(wide), weight, *statistics, *needs)
    dresidual = ds_of_norm if ds is None else ds_of_norm + ds
    dx = s.new_empty(0) if seed is None else dropout(dresidual, seed, dropout_p).to(s.dtype).contiguous()
    parameter_dtype = s.dtype if weight is None else weight.dtype
    return dx, dresidual.to(s.dtype).contiguous(), *(gradient.to(parameter_dtype) for gradient in gradients)


def add_layer_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, seed: Tensor | None,
    eps: float, dropout_p: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """y, s, mean, rstd."""
    return add_norm_fwd(layer_norm_fwd, x, residual, (weight, bias), seed, eps, dropout_p)


def add_layer_norm_bwd(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, seed: Tensor | None,
    dropout_p: float, needs_dweight: bool, needs_dbias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dx, dresidual, dweight, dbias."""
    needs = (needs_dweight, needs_dbias)
    return add_norm_bwd(layer_norm_bwd, dy, ds, s, weight, (mean, rstd), seed, dropout_p, needs)


def add_rms_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, seed: Tensor | None, eps: float, dropout_p: float
) -> tuple[Tensor, ...]:
    """y, s, rstd."""
    return add_norm_fwd(rms_norm_fwd, x, residual, (weight,), seed, eps, dropout_p)


def add_rms_norm_bwd(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor | None, rstd: Tensor, seed: Tensor | None,
    dropout_p: float, needs_dweight: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dx, dresidual, dweight."""
    return add_norm_bwd(rms_norm_bwd, dy, ds, s, weight, (rstd,), seed, dropout_p, (needs_dweight,))


def softmax_fwd(x: Tensor) -> Tensor:
    """exp(x - max) / sum over the last dimension; a row of -inf alone gives 0, not NaN."""
    wide = x.to(accumulate_dtype(x.dtype))
    if x.shape[-1] == 0:
        return x.contiguous().clone()
    sees_nothing = (wide == -math.inf).all(-1, keepdim=True)
    # Zeros in place of such a row keep -inf - -inf out of the values and out of the gradients.
    y = torch.softmax(wide.masked_fill(sees_nothing, 0.0), dim=-1).masked_fill(sees_nothing, 0.0)
    return y.to(x.dtype).contiguous()


def softmax_bwd(dy: Tensor, y: Tensor) -> Tensor:
    """dx = y * (dy - sum(dy * y))."""
    wide = accumulate_dtype(y.dtype)
    dy_wide, y_wide = dy.to(wide), y.to(wide)
    dx = y_wide * (dy_wide - (dy_wide * y_wide).sum(-1, keepdim=True))
    return dx.to(y.dtype).contiguous()


def log_softmax_fwd(x: Tensor) -> Tensor:
    """x - logsumexp(x) over the last dimension; a row of -inf alone gives -inf, not NaN."""
    wide = x.to(accumulate_dtype(x.dtype))
    if x.shape[-1] == 0:
        return x.contiguous().clone()
    sees_nothing = (wide == -math.inf).all(-1, keepdim=True)
    y = torch.log_softmax(wide.masked_fill(sees_nothing, 0.0), dim=-1).masked_fill(sees_nothing, -math.inf)
    return y.to(x.dtype).contiguous()


def log_softmax_bwd(dy: Tensor, y: Tensor) -> Tensor:
    """dx = dy - exp(y) * sum(dy)."""
    wide = accumulate_dtype(y.dtype)
    dy_wide = dy.to(wide)
    return (dy_wide - y.to(wide).exp() * dy_wide.sum(-1, keepdim=True)).to(y.dtype).contiguous()


def masked_softmax_fwd(x: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """softmax(scale * x + mask) over the last dimension; what is hidden, by False, -inf or causal, does not count."""
    wide = x.to(accumulate_dtype(x.dtype))
    hidden = _future(x) if causal else torch.zeros((), dtype=torch.bool, device=x.device)
    bias = None
    if mask is not None and mask.dtype == torch.bool:
        hidden = hidden | ~mask
    elif mask is not None:
        hidden = hidden | (mask == -math.inf)
        bias = mask.to(wide.dtype).masked_fill(hidden, 0.0)
    # Zeros in place of what is hidden keep its values out of the gradients.
    scores = wide.masked_fill(hidden, 0.0) * scale
    scores = scores if bias is None else scores + bias
    y = softmax_fwd(scores.masked_fill(hidden, -math.inf))
    y = y.masked_fill(_future(x), 0.0) if causal else y
    return y.to(x.dtype).contiguous()


def masked_softmax_bwd(dy: Tensor, y: Tensor, causal: bool, scale: float) -> Tensor:
    """dx = scale * y * (dy - sum(dy * y)), 0 where y is 0 or causal hides it, whatever dy is there."""
    hidden = y == 0
    wide = accumulate_dtype(y.dtype)
    dx = softmax_bwd(dy.to(wide).masked_fill(hidden, 0.0), y.to(wide)) * scale
    dx = dx.masked_fill(_future(y), 0.0) if causal else dx
    return dx.to(y.dtype).contiguous()


def _future(x: Tensor) -> Tensor:
    """Where causal hides: right of the diagonal that ends in the last column of the last row."""
    queries, keys = x.shape[-2:]
    return torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1)


def cross_entropy_fwd(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row: loss and logsumexp, both 0 of an ignored one; the maximum, and the sum of the exponentials to it.

    The loss is NaN where the target is no class.
    """
    index, kept, w, w_target = labels(logits, target, weight, ignore_index)
    # Zeros in place of an ignored row keep its values out of the gradients.
    wide = logits.to(w.dtype).masked_fill(~kept.unsqueeze(-1), 0.0)
    maximum = wide.amax(-1)
    total = (wide - maximum.unsqueeze(-1)).exp().sum(-1)
    log_sum = total.log()
    loss = (1 - label_smoothing) * w_target * (maximum - wide.gather(-1, index).squeeze(-1) + log_sum)
    if label_smoothing > 0:
        distances = (maximum.unsqueeze(-1) - wide) + log_sum.unsqueeze(-1)
        loss = loss + label_smoothing / logits.shape[-1] * (w * distances).sum(-1)
    lse = (maximum + log_sum).masked_fill(~kept, 0.0)
    return loss.masked_fill(~kept, 0.0).contiguous(), lse.contiguous(), maximum.contiguous(), total.contiguous()


def cross_entropy_reduced_fwd(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss of all rows with z-loss; lse, maximum and total of each; derivatives of the loss, as of `reduced_loss`."""
    loss, lse, maximum, total = cross_entropy_fwd(logits, target, weight, ignore_index, label_smoothing)
    loss, scales = reduced_loss(loss, lse, target, weight, ignore_index, z_loss, mean)
    return loss, lse, maximum, total, scales


def reduced_loss(
    loss: Tensor, lse: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, z_loss: float, mean: bool
) -> tuple[Tensor, Tensor]:
    """The losses of rows as one, with z-loss; its derivatives by a row's loss, and by a row's lse / lse."""
    weights = count = loss.new_ones(())
    if mean:
        kept = target != ignore_index
        weights = count = kept.sum().to(loss.dtype)
        if weight is not None:
            # A target that is no class has made the loss NaN already.
            of_rows = weight[target.clamp(0, weight.shape[0] - 1)]
            weights = of_rows.masked_fill(~kept, 0.0).sum()
    total = loss.sum() / weights
    scales = torch.stack((weights.reciprocal(), 2 * z_loss / count))
    return total + z_loss * lse.square().sum() / count if z_loss else total, scales


def cross_entropy_bwd(
    dloss: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, weight: Tensor | None, maximum: Tensor,
    total: Tensor, ignore_index: int, label_smoothing: float,
) -> Tensor:  # fmt: skip
    """dlogits = (dloss * sum(labels) + dlse) * softmax - dloss * labels, with labels weighted and smoothed."""
    index, kept, w, w_target = labels(logits, target, weight, ignore_index)
    wide = logits.to(w.dtype).masked_fill(~kept.unsqueeze(-1), 0.0)
    each, at_target = label_smoothing / logits.shape[-1] * w, (1 - label_smoothing) * w_target
    scale = dloss * (at_target + each.sum())
    scale = scale if dlse is None else scale + dlse
    dlogits = (scale / total).unsqueeze(-1) * (wide - maximum.unsqueeze(-1)).exp()
    if label_smoothing > 0:
        dlogits = dlogits - dloss.unsqueeze(-1) * each
    dlogits = dlogits.scatter_add(-1, index, -(dloss * at_target).unsqueeze(-1))
    return dlogits.masked_fill(~kept.unsqueeze(-1), 0.0).to(logits.dtype).contiguous()


def labels(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets to index with, (..., 1); which rows are kept; weights, (V,); those of the targets, NaN of no class."""
    classes, kept = logits.shape[-1], target != ignore_index
    w = logits.new_ones(classes, dtype=accumulate_dtype(logits.dtype)) if weight is None else weight
    index = target.clamp(0, classes - 1)
    return index.unsqueeze(-1), kept, w, w[index].masked_fill(kept & (index != target), math.nan)


def gelu_fwd(x: Tensor, tanh: bool) -> Tensor:
    """x * Phi(x), with Phi by erf or by its tanh approximation (Hendrycks and Gimpel, 2016); 0 at -inf."""
    return _activate(x.to(accumulate_dtype(x.dtype)), gelu_number(tanh)).to(x.dtype).contiguous()


def gelu_bwd(dy: Tensor, x: Tensor, tanh: bool) -> Tensor:
    """dx = dy * (gate + x * gate')."""
    wide = accumulate_dtype(x.dtype)
    return _input_gradient(dy.to(wide), x.to(wide), gelu_number(tanh)).to(x.dtype).contiguous()


def gelu_number(tanh: bool) -> int:
    """GELU_TANH or GELU_ERF."""
    return GELU_TANH if tanh else GELU_ERF


def bias_activation_fwd(x: Tensor, bias: Tensor, activation: int) -> Tensor:
    """activation(x + bias), the bias along the last dimension."""
    return _activate(x.to(accumulate_dtype(x.dtype)) + bias, activation).to(x.dtype).contiguous()


def bias_activation_bwd(
    dy: Tensor, x: Tensor, bias: Tensor, activation: int, needs_dbias: bool
) -> tuple[Tensor, Tensor]:
    """dx = dy * activation'(x + bias) and dbias, its sum over the rows; dbias is empty where it is not needed."""
    wide = accumulate_dtype(x.dtype)
    dx = _input_gradient(dy.to(wide), x.to(wide) + bias, activation)
    return dx.to(x.dtype).contiguous(), column_sums(dx, bias) if needs_dbias else bias.new_empty(0)


def column_sums(dx: Tensor, like: Tensor) -> Tensor:
    """The sum of dx, (..., N), over all dimensions but the last, in the dtype of `like`."""
    return dx.reshape(-1, dx.shape[-1]).sum(0).to(like.dtype) if dx.numel() else torch.zeros_like(like)


def glu_fwd(x: Tensor, up: Tensor | None, activation: int) -> Tensor:
    """activation(gate) * up, where x is the gate, or without `up` both: the gate is its first half."""
    gate, up = gate_and_up(x, up)
    wide = accumulate_dtype(x.dtype)
    return (_activate(gate.to(wide), activation) * up).to(x.dtype).contiguous()


def glu_bwd(dy: Tensor, x: Tensor, up: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:
    """Gradients of x and of `up`; the latter is empty where there is none."""
    gate, given_or_half = gate_and_up(x, up)
    wide = accumulate_dtype(x.dtype)
    dgate = _input_gradient(dy.to(wide) * given_or_half, gate.to(wide), activation).to(x.dtype)
    dup = (dy.to(wide) * _activate(gate.to(wide), activation)).to(x.dtype)
    return glu_gradients(dgate, dup, up)


def gate_and_up(x: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both factors of a gated linear unit, as views."""
    if up is not None:
        return x, up
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def glu_gradients(dgate: Tensor, dup: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a backward returns of these gradients of both factors."""
    if up is None:
        return torch.cat((dgate, dup), -1), dup.new_empty(0)
    return dgate.contiguous(), dup.contiguous()


def _activate(x: Tensor, activation: int) -> Tensor:
    if activation == RELU:
        return torch.relu(x)
    return x.clamp(min=-_FLAT[activation]) * _gate(x, activation)


def _input_gradient(dy: Tensor, x: Tensor, activation: int) -> Tensor:
    """dy * activation'(x)."""
    if activation == RELU:
        return dy.masked_fill(x <= 0, 0.0)
    gate = _gate(x, activation)
    near = x.clamp(-_FLAT[activation], _FLAT[activation])
    if activation == GELU_ERF:
        slope = torch.exp(-0.5 * near.square()) / math.sqrt(2 * math.pi)
    elif activation == GELU_TANH:
        slope = 2 * gate * (1 - gate) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * near.square())
    else:
        slope = gate * (1 - gate)
    return dy * (gate + near * slope)


def _gate(x: Tensor, activation: int) -> Tensor:
    """What x is multiplied by."""
    x = x.clamp(-_FLAT[activation], _FLAT[activation])
    if activation == GELU_TANH:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return torch.sigmoid(x) if activation == SILU else 0.5 * torch.erfc(x * -math.sqrt(0.5))
