"""Time as a function of the context: t = a + b S + c S^2 through what was measured, and how far it can be trusted.

Weighted least squares, each point by the inverse of its time, so that all have the same relative weight. No work takes
less than no time, so a, b and c are not negative: of the fits with some of them 0, the best that has no negative one
(Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23). The interval of a prediction at S, for n points
and 3 parameters, is that of linear regression (Draper and Smith, "Applied Regression Analysis", section 3.1):

    t(S) +- q s sqrt(1 / w + x^T (X^T W X)^-1 x),   q the 97.5% quantile of Student's t with n - 3 degrees of freedom
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PARAMETERS = 3
LEAST_POINTS = PARAMETERS + 1  # one more than parameters, so that there is an error to estimate
# 97.5% quantiles of Student's t by degrees of freedom from 1 on; from 31 on, the normal distribution's.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.960


@dataclass(frozen=True)
class Curve:
    """t = a + b S + c S^2.

    Attributes:
        coefficients: a, b and c, in seconds.
        scatter: standard deviation of relative errors; None where as many points as parameters leave none.
        inverse: (X^T W X)^-1, 3 x 3.
        degrees: of freedom.
    """

    coefficients: tuple[float, float, float]
    scatter: float | None
    inverse: np.ndarray
    degrees: int

    def at(self, context: float) -> float:
        """Seconds."""
        return float(np.dot(self.coefficients, _powers(context)))

    def half_width(self, context: float) -> float | None:
        """Half of the 95% prediction interval, in seconds; None where nothing is known of the scatter."""
        if self.scatter is None:
            return None
        x = _powers(context)
        quantile = STUDENT[self.degrees - 1] if self.degrees <= len(STUDENT) else NORMAL
        return quantile * self.scatter * math.sqrt(self.at(context) ** 2 + float(x @ self.inverse @ x))


def fit_curve(contexts: Sequence[float], seconds: Sequence[float]) -> Curve:
    """The curve through measured times.

    Raises:
        ValueError: there are fewer points than parameters.
    """
    if len(contexts) < PARAMETERS:
        raise ValueError(f"a curve of {PARAMETERS} parameters needs as many lengths, got {len(contexts)}")
    X = np.array([_powers(context) for context in contexts])
    times = np.array(seconds)
    scale = np.abs(X).max(axis=0)  # powers of a million are too far apart to solve as they are
    weighted = X / scale / times[:, None]
    solution = _nonnegative(weighted)
    errors = weighted @ solution - 1
    degrees = len(times) - PARAMETERS
    some = weighted * (solution > 0)  # what is 0 is no parameter, and has no error
    inverse = np.linalg.pinv(some.T @ some) / np.outer(scale, scale)
    a, b, c = solution / scale
    scatter = math.sqrt(float(errors @ errors) / degrees) if degrees else None
    return Curve((float(a), float(b), float(c)), scatter, inverse, degrees)


def _nonnegative(weighted: np.ndarray) -> np.ndarray:
    """The least squares solution of weighted x = 1 with no negative part."""
    found: list[tuple[float, np.ndarray]] = []
    for size in range(1, PARAMETERS + 1):
        for columns in map(list, itertools.combinations(range(PARAMETERS), size)):
            solution = np.zeros(PARAMETERS)
            solution[columns] = np.linalg.lstsq(weighted[:, columns], np.ones(len(weighted)), rcond=None)[0]
            if (solution >= 0).all():
                found.append((float(np.square(weighted @ solution - 1).sum()), solution))
    return min(found, key=lambda pair: pair[0])[1]


def held_out_error(contexts: Sequence[float], seconds: Sequence[float]) -> float:
    """Relative error, at the last length, of the curve through the others.

    Raises:
        ValueError: there are too few points.
    """
    return fit_curve(contexts[:-1], seconds[:-1]).at(contexts[-1]) / seconds[-1] - 1


def _powers(context: float) -> np.ndarray:
    return np.array([1.0, context, context**2])
