"""Every op through PyTorch's own fused kernels: what runs where there is no kernel of ours, the CPU above all.

The same functions as kernels/reference.py, several times faster than it, since ATen reads and writes each element once.
Where ATen's answer differs from the definition (a softmax row of -inf alone, the far tails of GELU's gradient, empty
rows), it is mended here. Statistics are fp32 whatever the input, as everywhere.
"""

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
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.layer_norm_bwd`."""
    if x.numel() == 0 or x.shape[-1] == 1:  # dx of a single feature is 0, where ATen leaves rounding errors
        return reference.layer_norm_bwd(dy, x, weight, mean, rstd, has_bias)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    wanted = [True, weight is not None, has_bias]
    dy_wide, x_wide, weight_wide = (_widen(tensor, x) for tensor in (dy, x, weight))
    gradients = _aten.native_layer_norm_backward(
        dy_wide, x_wide, x.shape[-1:], mean.unsqueeze(-1), rstd.unsqueeze(-1), weight_wide, weight_wide, wanted
    )
    dx, dweight, dbias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx.to(x.dtype).contiguous(), dweight.to(parameter_dtype), dbias.to(parameter_dtype)


def softmax_fwd(x: Tensor) -> Tensor:
    """As `reference.softmax_fwd`."""
    y = torch.softmax(x, dim=-1)
    # A row of -inf alone is NaN in every place, so the first place tells whether any row needs a second look.
    if y.numel() and y[..., 0].isnan().any():
        return reference.softmax_fwd(x)
    return y.contiguous()


def softmax_bwd(dy: Tensor, y: Tensor) -> Tensor:
    """As `reference.softmax_bwd`."""
    return _aten._softmax_backward_data(dy, y, -1, y.dtype).contiguous()


def gelu_fwd(x: Tensor, tanh: bool) -> Tensor:
    """As `reference.gelu_fwd`."""
    return torch.nn.functional.gelu(x, approximate="tanh" if tanh else "none").contiguous()


def gelu_bwd(dy: Tensor, x: Tensor, tanh: bool) -> Tensor:
    """As `reference.gelu_bwd`."""
    if tanh:
        # The gradient is 0 or 1 long before |x| = 100; past 1e19 ATen's x**2 overflows and gives NaN.
        x = x.clamp(-100.0, 100.0)
    return _aten.gelu_backward(dy, x, approximate="tanh" if tanh else "none").contiguous()


def _widen(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(reference.accumulate_dtype(x.dtype))
