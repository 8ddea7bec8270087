"""The curve of a step's time through the lengths that were measured, tested at the longest one and carried beyond."""

from collections.abc import Iterator, Sequence

from fusedformer.benchmarks.profile.cells import EXTRAPOLATE, PREDICTED, TIME, Cell
from fusedformer.benchmarks.profile.curves import LEAST_POINTS, fit_curve, held_out_error
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.times import Measured

COEFFICIENTS = {"a": "s", "b": "s/token", "c": "s/token^2"}
HELD_OUT = "error at the longest measured, held out"
LOW, HIGH = "low", "high"


def extrapolation(setting: Setting, times: Measured | None, contexts: Sequence[int], machine: str) -> Iterator[Cell]:
    """The cells of one setting: coefficients, the held-out error, and each longer context with its 95% interval."""
    common = {
        "section": EXTRAPOLATE, "model": setting.subject.name, "mode": setting.mode, "attention": setting.attention
    }  # fmt: skip
    lengths = [] if times is None else list(times.measured)
    if times is None or len(lengths) < LEAST_POINTS:
        reason = f"{len(lengths)} lengths measured, {LEAST_POINTS} are needed: see --measure-upto"
        yield Cell(**common, quantity=TIME, reason=reason)
        return
    seconds = [times.measured[length].step for length in lengths]
    curve = fit_curve(lengths, seconds)
    common |= {"machine": machine, "obtained": PREDICTED}
    for (name, unit), value in zip(COEFFICIENTS.items(), curve.coefficients, strict=True):
        yield Cell(**common, component=name, quantity="coefficient", value=value, unit=unit)
    error = held_out_error(lengths, seconds)
    yield Cell(**common, context=lengths[-1], quantity=HELD_OUT, value=error, unit="1")
    for context in contexts:
        if context > lengths[-1]:
            middle, half = curve.at(context), curve.half_width(context) or 0.0
            yield Cell(**common, context=context, quantity=TIME, value=middle, unit="s")
            yield Cell(**common, context=context, component=LOW, quantity=TIME, value=max(0, middle - half), unit="s")
            yield Cell(**common, context=context, component=HIGH, quantity=TIME, value=middle + half, unit="s")
