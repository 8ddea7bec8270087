"""An activation of x + bias: y = gelu(x + bias) or relu(x + bias), what follows a linear layer without a bias.

M rows (all leading dimensions), N features.
Memory traffic: forward reads x and writes y, 2 M N elements; backward reads dy and x and writes dx, 3 M N, and gives
the bias's gradient in the same pass.
Device code: csrc/bias_activation.cu.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, reference
from fusedformer.kernels.gelu import check_approximate


def bias_gelu(x: Tensor, bias: Tensor, *, approximate: str = "none") -> Tensor:
    """gelu(x + bias), where the sum is not rounded in between.

    Args:
        x: (..., N), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        bias: (N,), any of these dtypes.
        approximate: "none" or "tanh", as of `gelu`.

    Returns:
        Contiguous tensor of x's shape and dtype, computed in float32 whatever the input. The gradient of `bias` is
        summed in float32 too, always in the same order.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or unknown `approximate`.

    Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016, section 2.
    """
    check_approximate("bias_gelu", approximate)
    return _bias_activation("bias_gelu", x, bias, reference.gelu_number(approximate == "tanh"))


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """max(x + bias, 0), with gradient 0 at 0.

    Args:
        x: (..., N), float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        bias: (N,), any of these dtypes.

    Returns:
        Contiguous tensor of x's shape and dtype, computed in float32 whatever the input. The gradient of `bias` is
        summed in float32 too, always in the same order.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    return _bias_activation("bias_relu", x, bias, reference.RELU)


def _bias_activation(function: str, x: Tensor, bias: Tensor, activation: int) -> Tensor:
    if not is_compiling() and (y := eager.bias_activation(x, bias, activation)) is not None:
        return y
    if (y := bias_activation_fwd.natively(x, bias, activation)) is not None:
        return y
    if (y := bias_activation_fwd.by_kernel(x, bias, activation)) is not None:
        return y
    if not _are_usual(x, bias):
        _check(function, x, bias)
    if bias.dtype not in (x.dtype, torch.float32):  # the kernels take these two
        bias = bias.to(reference.accumulate_dtype(x.dtype))
    return bias_activation_fwd(x, bias, activation)


def _are_usual(x: Tensor, bias: Tensor) -> bool:
    if bias is None or not library.are_alike(x, bias) or x.dim() == 0:
        return False
    return bias.dim() == 1 and bias.size(0) == x.size(-1)


def _check(function: str, x: Tensor, bias: Tensor) -> None:
    library.check_tensor(function, "x", x)
    library.check_tensor(function, "bias", bias)
    if x.dim() == 0:
        raise ValueError(f"{function}: x has no dimension for a bias: shape ()")
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"{function}: bias has shape {tuple(bias.shape)}, x has {x.shape[-1]} features")
    library.check_dtype(function, x=x, bias=bias)
    library.check_device(function, x=x, bias=bias)


def _fwd_fake(x: Tensor, bias: Tensor, activation: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _bwd_fake(dy: Tensor, x: Tensor, bias: Tensor, activation: int, needs_dbias: bool) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, bias.new_empty(bias.shape if needs_dbias else 0)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.activation = inputs
    ctx.save_for_backward(x, bias)


def _fwd_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs_dbias = ctx.needs_input_grad[1]
    dx, dbias = bias_activation_bwd(dy, *ctx.saved_tensors, ctx.activation, needs_dbias)
    return dx, dbias if needs_dbias else None, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, x, bias, *ctx.settings = inputs
    ctx.save_for_backward(dy, x, bias)


def _bwd_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return reference.bias_activation_bwd(dy, x, bias, *ctx.settings)

    return *library.vjp(backward, ctx.saved_tensors, grads), None, None


bias_activation_fwd = library.define(
    "bias_activation_fwd(Tensor x, Tensor bias, int activation) -> Tensor",
    fallback=aten.bias_activation_fwd,
    fake=_fwd_fake,
    native=native.bias_activation_fwd,
)
bias_activation_bwd = library.define(
    "bias_activation_bwd(Tensor dy, Tensor x, Tensor bias, int activation, bool needs_dbias) -> (Tensor, Tensor)",
    fallback=aten.bias_activation_bwd,
    fake=_bwd_fake,
)
library.differentiate("bias_activation_fwd", _fwd_gradient, _save_fwd, reference.bias_activation_fwd)
library.differentiate("bias_activation_bwd", _bwd_gradient, _save_bwd, reference.bias_activation_bwd)
