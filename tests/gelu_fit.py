"""The polynomials of csrc/activations.cuh, fitted anew: `python tests/gelu_fit.py` prints them.

1 / M(a) = exp(-a^2 / 2) / Phi(-a), where M is the Mills ratio over sqrt(2 pi), grows from 2 to a straight line, and has
no cancellation in the tail of Phi. The fit has the least largest relative error, by Lawson's iteration: least squares,
with every point's weight multiplied by its last error until the largest errors are all the same.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

DEGREE = 6
SOURCE = Path(__file__).parents[1] / "csrc" / "activations.cuh"
_STRUCT = (
    r"struct InverseTail<{0}> {{\s*static constexpr float kFarthest = ([\d.]+)f;.*?scaled_polynomial<{0}>\(a, ([^)]*)\)"
)


def inverse_tail(a: Tensor) -> Tensor:
    """exp(-a^2 / 2) / Phi(-a), exactly."""
    return 2 / torch.special.erfcx(a / math.sqrt(2))


def fit(farthest: float, n_points: int = 300, n_iterations: int = 150) -> list[float]:
    """Coefficients for 0 <= a <= farthest, the constant first."""
    angles = math.pi * (torch.arange(n_points, dtype=torch.float64) + 0.5) / n_points
    unit = torch.cos(angles)  # crowded towards both ends, where the errors of a fit are largest
    powers = unit[:, None] ** torch.arange(DEGREE + 1)
    relative = powers / inverse_tail(farthest * (1 + unit) / 2)[:, None]
    weights = torch.full((n_points,), 1 / n_points, dtype=torch.float64)
    for _ in range(n_iterations):
        root = weights.sqrt()[:, None]
        coefficients = torch.linalg.lstsq(relative * root, root).solution
        weights = weights * (relative @ coefficients - 1).abs().squeeze(1)
        weights = weights / weights.sum()
    return _in_powers_of(2 / farthest, coefficients.squeeze(1).tolist())


def largest_error(coefficients: list[float], farthest: float) -> float:
    """Relative, over 0 <= a <= farthest."""
    a = torch.linspace(0, farthest, 20_001, dtype=torch.float64)
    got = sum(c * a**power for power, c in enumerate(coefficients))
    return float((got / inverse_tail(a) - 1).abs().max())


def shipped(dtype: str) -> tuple[float, list[float]]:
    """What csrc has for `dtype`, as CUDA names it: the farthest a, and the coefficients."""
    found = re.search(_STRUCT.format(dtype), SOURCE.read_text(), flags=re.DOTALL)
    if found is None:
        raise ValueError(f"no polynomial for {dtype} in {SOURCE.name}")
    return float(found[1]), [float(number.strip().rstrip("f")) for number in found[2].split(",")]


def _in_powers_of(scale: float, coefficients: list[float]) -> list[float]:
    """Of a polynomial in (scale a - 1) those of the same polynomial in a."""
    out = [0.0] * len(coefficients)
    for power, coefficient in enumerate(coefficients):
        for k in range(power + 1):
            out[k] += coefficient * math.comb(power, k) * scale**k * (-1) ** (power - k)
    return out


if __name__ == "__main__":
    for name in ("__nv_bfloat16", "__half"):
        reach, ours = shipped(name)
        fitted = fit(reach)
        print(f"{name}: {[f'{c:.8g}' for c in fitted]}, error {largest_error(fitted, reach):.3g}")
        print(f"    shipped: {[f'{c:.8g}' for c in ours]}, error {largest_error(ours, reach):.3g}")
