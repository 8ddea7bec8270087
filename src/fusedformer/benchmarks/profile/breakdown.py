"""Each component of a step at one context length: time, share, FLOPs, bytes, intensity, roofline, saved activations."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.profile import cells
from fusedformer.benchmarks.profile.cells import BREAKDOWN, MODELLED, PREDICTED, STEP, UNITS, Cell, Obtained
from fusedformer.benchmarks.profile.components import ATTENTION, COMPONENTS, OPTIMIZER, SOFTMAX
from fusedformer.benchmarks.profile.family import Array, Sheet
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.roofline import bound_seconds
from fusedformer.benchmarks.profile.tracing import FORWARD, TracedOp

ATTENTION_FORWARD, ATTENTION_BACKWARD = f"{ATTENTION} forward", f"{ATTENTION} backward"
OF_ATTENTION = (ATTENTION_FORWARD, ATTENTION_BACKWARD, SOFTMAX)
LINES = tuple(
    line
    for component in COMPONENTS
    for line in ((ATTENTION_FORWARD, ATTENTION_BACKWARD) if component == ATTENTION else (component,))
)
"""The lines of a breakdown, in the order of a model."""


@dataclass(frozen=True)
class Times:
    """Seconds of each line at one context length, and how they were obtained."""

    seconds: dict[str, float]
    obtained: Obtained
    machine: Machine
    reason: str = ""

    @property
    def step(self) -> float:
        """Of the whole step."""
        return sum(self.seconds.values())

    @property
    def attention_share(self) -> float:
        """Of the step, what attention takes."""
        return sum(self.seconds.get(line, 0.0) for line in OF_ATTENTION) / self.step


def line_of(op: TracedOp) -> str:
    """The line of a breakdown that an op belongs to."""
    if op.component != ATTENTION:
        return op.component
    return ATTENTION_FORWARD if op.phase == FORWARD else ATTENTION_BACKWARD


def by_line(sheet: Sheet, values: Array) -> dict[str, float]:
    """Values of ops summed over the lines that have any, as often as each op happens."""
    lines = np.array([line_of(op) for op in sheet.ops])
    present = set(lines)
    return {line: float((values * sheet.weights)[lines == line].sum()) for line in LINES if line in present}


def breakdown(setting: Setting, context: int, sheet: Sheet, times: Times) -> Iterator[Cell]:
    """The cells of one step: those of its lines, and those of the whole."""
    flops, moved, saved, bound = (
        by_line(sheet, column)
        for column in (sheet.flops, sheet.n_bytes, sheet.saved, bound_seconds(sheet, times.machine))
    )
    total = times.step
    for line in [*flops, STEP]:
        is_step = line == STEP
        sums = [float(sum(column.values())) if is_step else column[line] for column in (flops, moved, saved, bound)]
        seconds = total if is_step else times.seconds[line]
        values: dict[str, tuple[float, Obtained]] = {
            cells.TIME: (seconds, times.obtained),
            cells.SHARE: (seconds / total, times.obtained),
            cells.FLOPS: (sums[0], MODELLED),
            cells.BYTES: (sums[1], MODELLED),
            cells.INTENSITY: (sums[0] / sums[1] if sums[1] else 0.0, MODELLED),
            cells.ROOFLINE: (sums[3] / seconds if seconds else 0.0, times.obtained),
        }
        if line != OPTIMIZER and any(saved.values()):
            values[cells.SAVED] = (sums[2], PREDICTED)
        for quantity, (value, obtained) in values.items():
            yield setting.cell(
                BREAKDOWN,
                context=context,
                component=line,
                quantity=quantity,
                value=value,
                unit=UNITS[quantity],
                obtained=obtained,
                machine=times.machine.name,
                reason=times.reason if obtained == times.obtained else "",
            )
