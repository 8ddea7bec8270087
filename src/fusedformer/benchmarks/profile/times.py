"""How long each line of a breakdown takes at any context: by a model of a machine, or by measuring here.

Beyond the lengths that were measured, each line follows its own curve through them.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.profile.breakdown import LINES, Times, by_line
from fusedformer.benchmarks.profile.cells import MEASURED, MODELLED, PREDICTED
from fusedformer.benchmarks.profile.curves import PARAMETERS, fit_curve
from fusedformer.benchmarks.profile.family import Family
from fusedformer.benchmarks.profile.measure import Measurement, NotMeasuredError, measure
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.roofline import model_seconds


class TimesAt(Protocol):
    """Times of the steps of one setting."""

    def at(self, context: int) -> Times:
        """The times of a context.

        Raises:
            NotMeasuredError: there is no figure; the message says why.
        """


class Modelled:
    """Times by the roofline model of a machine."""

    def __init__(self, family: Family, machine: Machine) -> None:
        self._family, self._machine = family, machine

    def at(self, context: int) -> Times:
        """The modelled times of a context."""
        sheet = self._family.at(context)
        reason = f"roofline of the {self._machine.source}"
        return Times(by_line(sheet, model_seconds(sheet, self._machine)), MODELLED, self._machine, reason)


class Measured:
    """Times of the steps that ran here.

    Args:
        setting: what runs.
        family: its traces.
        contexts: lengths to measure.
        device: where.
        machine: its peaks.
        progress: told of each length.
    """

    def __init__(
        self,
        setting: Setting,
        family: Family,
        contexts: Sequence[int],
        device: torch.device,
        machine: Machine,
        progress: Callable[[int], None],
    ) -> None:
        self._family, self._machine = family, machine
        self.measured: dict[int, Times] = {}
        self.runs: dict[int, Measurement] = {}
        self.peaks: dict[int, int] = {}
        self.failures: dict[int, str] = {}
        for context in contexts:
            progress(context)
            sheet = family.at(context)
            try:
                found = measure(setting, context, sheet, device)
                seconds = by_line(sheet, found.seconds_of(sheet))
            except NotMeasuredError as error:
                self.failures[context] = str(error)
                continue
            ran = "" if found.n_blocks is None else f"{found.n_blocks} of {setting.subject.n_layers} blocks ran; "
            reason = f"{ran}median of {found.repeats}"
            self.measured[context] = Times(seconds, MEASURED, machine, reason)
            self.runs[context] = found
            if found.peak is not None:
                self.peaks[context] = found.peak

    def at(self, context: int) -> Times:
        """The times of a context that was measured, or those that its curves predict."""
        if context in self.measured:
            return self.measured[context]
        if context in self.failures:
            raise NotMeasuredError(self.failures[context])
        if len(self.measured) < PARAMETERS:
            raise NotMeasuredError(f"{len(self.measured)} lengths measured, {PARAMETERS} are needed to go beyond")
        contexts = list(self.measured)
        seconds = {}
        for line in LINES:
            if line in self.measured[contexts[0]].seconds:
                curve = fit_curve(contexts, [max(self.measured[c].seconds[line], 1e-9) for c in contexts])
                seconds[line] = max(0.0, curve.at(context))
        return Times(seconds, PREDICTED, self._machine, f"curve through {len(contexts)} measured lengths")
