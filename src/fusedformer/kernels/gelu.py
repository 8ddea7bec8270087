"""GELU: y = x * Phi(x), Phi the normal distribution function, by erf or by its tanh approximation.

Memory traffic: forward reads x and writes y, 2 elements each; backward reads dy and x and writes dx, 3.
Device code: csrc/gelu.cu. Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, reference

APPROXIMATIONS = ("none", "tanh")


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit of every element of `x`.

    Args:
        x: any shape, float32, float16 or bfloat16 (on the CPU float64 too), any strides.
        approximate: "none" for x * Phi(x) by erf, "tanh" for 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Returns:
        Contiguous tensor of x's shape and dtype, computed in float32 whatever the input.

    Raises:
        ValueError: unknown `approximate`, or the dtype is not a floating point type the device computes.

    Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016, section 2.
    """
    if not is_compiling() and approximate in APPROXIMATIONS and (y := eager.gelu(x, approximate == "tanh")) is not None:
        return y
    if (y := gelu_fwd.natively(x, approximate)) is not None:
        return y
    if approximate in APPROXIMATIONS and (y := gelu_fwd.by_kernel(x, approximate == "tanh")) is not None:
        return y
    if not library.are_alike(x):
        library.check_tensor("gelu", "x", x)
        library.check_dtype("gelu", x=x)
    check_approximate("gelu", approximate)
    return gelu_fwd(x, approximate == "tanh")


def check_approximate(function: str, approximate: str) -> None:
    """Raise ValueError unless it is one of APPROXIMATIONS."""
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"{function}: approximate is {approximate!r}, expected one of {APPROXIMATIONS}")


def _fwd_fake(x: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _bwd_fake(dy: Tensor, x: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.tanh = inputs
    ctx.save_for_backward(x)


def _fwd_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return gelu_bwd(dy, x, ctx.tanh), None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, x, ctx.tanh = inputs
    ctx.save_for_backward(dy, x)


def _bwd_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    def backward(dy: Tensor, x: Tensor) -> Tensor:
        return reference.gelu_bwd(dy, x, ctx.tanh)

    return *library.vjp(backward, ctx.saved_tensors, grad), None


gelu_fwd = library.define(
    "gelu_fwd(Tensor x, bool tanh) -> Tensor", fallback=aten.gelu_fwd, fake=_fwd_fake, native=native.gelu_fwd
)
gelu_bwd = library.define("gelu_bwd(Tensor dy, Tensor x, bool tanh) -> Tensor", fallback=aten.gelu_bwd, fake=_bwd_fake)
library.differentiate("gelu_fwd", _fwd_gradient, _save_fwd, reference.gelu_fwd, row_wise=True)
library.differentiate("gelu_bwd", _bwd_gradient, _save_bwd, reference.gelu_bwd, row_wise=True)
