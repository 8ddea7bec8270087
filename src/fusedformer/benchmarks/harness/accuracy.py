"""The error budget: how far a result may be from the float64 answer.

    max|out - exact| <= factor * max|plain - exact| + 1 ulp of the largest value

`exact` is the answer in float64, `plain` what plain PyTorch computes in the dtype of `out`. The factor is 2 for
outputs and 3 for gradients. Where `plain` is not finite, it grants nothing. Everything here speaks of the ratio of the
two sides: a result passes at 1 or below.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0


def budget_ratio(out: Tensor, exact: Tensor, plain: Tensor, *, factor: float = OUTPUT_FACTOR) -> float:
    """Error of `out` over its budget; inf where NaN or infinities differ from `exact`, 0.0 for an empty tensor.

    Args:
        out: the result to judge.
        exact: float64, of out's shape.
        plain: plain PyTorch's result in out's dtype, of out's shape.
        factor: OUTPUT_FACTOR or GRADIENT_FACTOR.

    Raises:
        ValueError: the shapes differ, or `exact` is not float64.
    """
    if not out.shape == exact.shape == plain.shape:
        shapes = f"out {tuple(out.shape)}, exact {tuple(exact.shape)}, plain {tuple(plain.shape)}"
        raise ValueError(f"budget_ratio: shapes differ: {shapes}")
    if exact.dtype != torch.float64:
        raise ValueError(f"budget_ratio: exact is {exact.dtype}, expected torch.float64")
    if out.numel() == 0:
        return 0.0
    out64, exact, plain64 = (tensor.detach().to(out.device, torch.float64) for tensor in (out, exact, plain))
    finite = exact.isfinite()
    if not torch.equal(out64.isfinite(), finite) or not torch.equal(_special(out64), _special(exact)):
        return math.inf
    if not finite.any():
        return 0.0
    error = (out64 - exact)[finite].abs().max().item()
    plain_errors = (plain64 - exact)[finite].abs()
    plain_error = plain_errors.where(plain_errors.isfinite(), 0.0).max().item()
    ratio = error / (factor * plain_error + ulp(exact[finite].abs().max().item(), out.dtype))
    return math.inf if math.isnan(ratio) else ratio


def budget_ratios(
    names: Sequence[str], got: Sequence[Tensor], exact: Sequence[Tensor], plain: Sequence[Tensor]
) -> dict[str, float]:
    """Share of the error budget by tensor: the first is the output, the others are gradients."""
    factors = [OUTPUT_FACTOR] + [GRADIENT_FACTOR] * (len(names) - 1)
    return {
        name: budget_ratio(*tensors, factor=factor)
        for name, factor, *tensors in zip(names, factors, got, exact, plain, strict=True)
    }


def worst(ratios: Iterable[float]) -> float:
    """The largest ratio, 0.0 if there is none; NaN, of which nothing is known, is worse than any number."""
    return max((math.inf if math.isnan(ratio) else ratio for ratio in ratios), default=0.0)


def ulp(value: float, dtype: torch.dtype) -> float:
    """Distance between neighbouring numbers of `dtype` at `value`; the smallest subnormal's at and near 0."""
    info = torch.finfo(dtype)
    exponent = math.floor(math.log2(max(value, info.tiny)))
    return info.eps * 2.0**exponent


def _special(values: Tensor) -> Tensor:
    """Finite values as 0, NaN as 1, -inf as 2, +inf as 3: what must match place by place."""
    kinds = values.isnan().int()
    return kinds + 2 * (values == -math.inf).int() + 3 * (values == math.inf).int()
