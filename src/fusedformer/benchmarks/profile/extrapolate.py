"""The curve of a step's time through the lengths that were measured, tested at the longest one and carried beyond."""

from collections.abc import Iterator, Sequence
from typing import Any

from fusedformer.benchmarks.profile.cells import EXTRAPOLATE, PREDICTED, TIME, Cell
from fusedformer.benchmarks.profile.curves import LEAST_POINTS, fit_curve, held_out_error
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.times import Measured

COEFFICIENTS = {"a": "s", "b": "s/token", "c": "s/token^2"}
HELD_OUT = "error at the longest measured, held out"
LOW, HIGH = "low", "high"


def extrapolation(setting: Setting, times: Measured | None, contexts: Sequence[int], machine: str) -> Iterator[Cell]:
    """The cells of one setting: coefficients, the held-out error, and each longer context with its 95% interval."""
    lengths = [] if times is None else list(times.measured)
    if times is None or len(lengths) < LEAST_POINTS:
        reason = f"{len(lengths)} lengths measured, {LEAST_POINTS} are needed: see --measure-upto"
        yield setting.cell(EXTRAPOLATE, quantity=TIME, reason=reason)
        return

    def predicted(quantity: str, value: float, unit: str, **others: Any) -> Cell:
        return setting.cell(
            EXTRAPOLATE, quantity=quantity, value=value, unit=unit, obtained=PREDICTED, machine=machine, **others
        )

    seconds = [times.measured[length].step for length in lengths]
    curve = fit_curve(lengths, seconds)
    for (name, unit), value in zip(COEFFICIENTS.items(), curve.coefficients, strict=True):
        yield predicted("coefficient", value, unit, component=name)
    yield predicted(HELD_OUT, held_out_error(lengths, seconds), "1", context=lengths[-1])
    for context in contexts:
        if context > lengths[-1]:
            middle, half = curve.at(context), curve.half_width(context) or 0.0
            yield predicted(TIME, middle, "s", context=context)
            yield predicted(TIME, max(0.0, middle - half), "s", context=context, component=LOW)
            yield predicted(TIME, middle + half, "s", context=context, component=HIGH)
