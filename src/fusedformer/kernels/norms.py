"""What the norms share: checks of their arguments, and the one form that their kernels know."""

import math
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels import library, reference

FLOAT32_EPS = torch.finfo(torch.float32).eps  # the default of RMSNorm, of all dtypes that kernels take


def check(function: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: Any) -> None:
    """Raise ValueError unless x is (..., N), weight and bias are (N,) or None, and eps is a finite number >= 0."""
    if not _are_usual(x, weight, bias):
        _check_tensors(function, x, weight, bias)
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(f"{function}: eps is {eps!r}, expected a finite number >= 0")


def _are_usual(x: Any, weight: Any, bias: Any) -> bool:
    if not library.are_alike(x, weight, bias) or x.dim() == 0:
        return False
    n = x.size(-1)
    return all(p is None or (p.dim() == 1 and p.size(0) == n) for p in (weight, bias))


def _check_tensors(function: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    library.check_tensor(function, "x", x)
    if x.dim() == 0:
        raise ValueError(f"{function}: x has no dimension to normalise: shape ()")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        library.check_tensor(function, name, parameter)
        if parameter.shape != x.shape[-1:]:
            raise ValueError(f"{function}: {name} has shape {tuple(parameter.shape)}, x has {x.shape[-1]} features")
    library.check_dtype(function, x=x, weight=weight, bias=bias)
    library.check_device(function, x=x, weight=weight, bias=bias)


def check_residual(function: str, x: Tensor, residual: Tensor) -> None:
    """Raise ValueError unless residual has x's shape, dtype and device."""
    library.check_tensor(function, "residual", residual)
    if residual.shape != x.shape:
        raise ValueError(f"{function}: residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}")
    if residual.dtype != x.dtype:
        dtypes = library.short(residual.dtype), library.short(x.dtype)
        raise ValueError(f"{function}: residual is {dtypes[0]}, x is {dtypes[1]}: they must have one dtype")
    library.check_device(function, x=x, residual=residual)


def parameters_of_one_dtype(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The kernels take weight and bias in x's dtype or in float32, and no bias without a weight."""
    if bias is not None and weight is None:
        weight = torch.ones_like(bias)
    if bias is None and (weight is None or weight.dtype == x.dtype):
        return weight, bias
    given = {parameter.dtype for parameter in (weight, bias) if parameter is not None}
    if given <= {x.dtype} or given <= {torch.float32}:
        return weight, bias
    wide = reference.accumulate_dtype(x.dtype)
    return (None if weight is None else weight.to(wide)), (None if bias is None else bias.to(wide))


def default_eps(x: Tensor, eps: float | None) -> float:
    """RMSNorm's, as PyTorch has it: the resolution of the dtype that statistics have, not of x's own."""
    return torch.finfo(reference.accumulate_dtype(x.dtype)).eps if eps is None else eps


def dropout_seed(function: str, x: Tensor, seed: Tensor | None, dropout_p: Any) -> Tensor | None:
    """The seed as (1,), drawn from PyTorch's generator where none is given; None without dropout. Or ValueError."""
    is_number = isinstance(dropout_p, (int, float)) and not isinstance(dropout_p, bool)
    if not is_number or not 0 <= dropout_p < 1:
        raise ValueError(f"{function}: dropout_p is {dropout_p!r}, expected 0 to 1 (less than 1)")
    return library.random_seed(function, "x", x, seed, dropout_p)


def rstd_that_follows(rstd: Tensor, moment: Tensor) -> Tensor:
    """The saved rstd, as a function of the second moment of x: what a derivative of a backward is taken through.

    eps is not kept: the saved value of 1 / rstd**2 stands for moment + eps, and only varies with x.
    """
    return torch.rsqrt(rstd.detach().pow(-2) + moment - moment.detach())


def statistics_that_follow(x: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    """Of the saved (mean, rstd) of a LayerNorm, or (rstd,) of an RMSNorm, those that follow from x."""
    wide = x.to(saved[-1].dtype)
    if len(saved) == 1:
        return (rstd_that_follows(saved[0], wide.square().mean(-1)),)
    variance, mean = torch.var_mean(wide, -1, correction=0)
    return mean, rstd_that_follows(saved[1], variance)
