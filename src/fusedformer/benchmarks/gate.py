"""A wrong answer gets no time: every contender is held against float64 before it is timed."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedformer.benchmarks.accuracy import GRADIENT_FACTOR, OUTPUT_FACTOR, budget_ratio
from fusedformer.benchmarks.rows import Status


@dataclass(frozen=True)
class Verdict:
    """What holding a contender against float64 came to; the fields are those of a row."""

    status: Status = "ok"
    reason: str = ""
    error_ratio: float | None = None
    worst_tensor: str = ""


def judge(error_ratios: Callable[[], Mapping[str, float]]) -> Verdict:
    """Call `error_ratios`, which gives the share of its error budget by tensor; raising is a verdict too."""
    try:
        ratios = error_ratios()
    except Exception as error:  # whatever a contender raises is its result
        return Verdict("failed", reason=describe(error))
    worst = max(ratios, key=lambda name: ratios[name])
    if math.isinf(ratios[worst]):
        return Verdict("wrong", f"{worst} is NaN or infinite where float64 is not, or the reverse", None, worst)
    if ratios[worst] > 1:
        return Verdict("wrong", f"error of {worst} is {ratios[worst]:.3g} times its budget", ratios[worst], worst)
    return Verdict("ok", "", ratios[worst], worst)


def describe(error: BaseException) -> str:
    """An exception in one line of a length that a table can take."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=300)


def budget_ratios(
    names: Sequence[str], got: Sequence[Tensor], exact: Sequence[Tensor], plain: Sequence[Tensor]
) -> dict[str, float]:
    """Share of the error budget by tensor: the first is the output, the others are gradients."""
    factors = [OUTPUT_FACTOR] + [GRADIENT_FACTOR] * (len(names) - 1)
    return {
        name: budget_ratio(*tensors, factor=factor)
        for name, factor, *tensors in zip(names, factors, got, exact, plain, strict=True)
    }
