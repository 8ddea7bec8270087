"""`fusedformer profile`: traces, times, breakdown, fit, crossover, extrapolation and pictures, into one run folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from fusedformer.benchmarks import machines
from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.profile import cells, exports, tables
from fusedformer.benchmarks.profile.breakdown import breakdown
from fusedformer.benchmarks.profile.cells import BREAKDOWN, COLUMNS, MEASURED, MODELLED, PREDICTED, Cell, Obtained
from fusedformer.benchmarks.profile.contenders import CONTENDERS
from fusedformer.benchmarks.profile.crossover import crossovers
from fusedformer.benchmarks.profile.extrapolate import extrapolation
from fusedformer.benchmarks.profile.family import Family, sheet_of
from fusedformer.benchmarks.profile.fit import fit
from fusedformer.benchmarks.profile.measure import NotMeasuredError
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.roofline import model_seconds
from fusedformer.benchmarks.profile.steps import MODES, NoSuchStepError
from fusedformer.benchmarks.profile.subjects import Subject
from fusedformer.benchmarks.profile.times import Measured, Modelled, TimesAt
from fusedformer.benchmarks.report import machine as environment
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.rows import without_folders
from fusedformer.benchmarks.report.run_folder import RunFolder
from fusedformer.benchmarks.report.tables import Table
from fusedformer.kernels import emulation


@dataclass(frozen=True)
class Options:
    """What to profile.

    Attributes:
        output: the run folder.
        subject: the model.
        contexts: lengths.
        modes: of steps.MODES.
        attentions: of contenders.CONTENDERS.
        memory: bytes that a step may take; None for what the machine has.
        measure_upto: the longest context to measure here; None for none without a GPU, and all with one.
    """

    output: Path
    subject: Subject
    contexts: Sequence[int]
    modes: Sequence[str] = MODES
    attentions: Sequence[str] = CONTENDERS
    memory: float | None = None
    measure_upto: int | None = None


class CannotProfileError(ValueError):
    """No step of the model could be traced; the message says why."""


def run(options: Options, console: Console) -> None:
    """Profile, print, and write the run folder.

    Raises:
        ValueError: the output is an existing file or a folder with something in it.
        CannotProfileError: the model has none of these steps.
    """
    folder = RunFolder(options.output, COLUMNS)
    with emulation.emulated(False), folder:
        profile = _Profile(options, console, folder)
        profile.work()
        profile.write()
    console.line(f"Run folder: {options.output}")


class _Profile:
    """One run: its machine, and what has been found so far."""

    def __init__(self, options: Options, console: Console, folder: RunFolder) -> None:
        self.options, self.console, self.folder = options, console, folder
        has_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if has_gpu else "cpu")
        longest = max(options.contexts)
        upto = options.measure_upto if options.measure_upto is not None else longest if has_gpu else 0
        self.to_measure = [context for context in options.contexts if context <= upto]
        self.machine = self._find_machine()
        self.memory = options.memory or self.machine.memory
        # Without a GPU nothing is measured unless asked for: a GPU is modelled, with its kernels.
        self.device_type = self.device.type if self.to_measure else "cuda"
        self.tables: list[Table] = []
        self.refused: list[Cell] = []  # of steps that the model has not

    def work(self) -> None:
        """Everything, mode by mode."""
        self.console.line(
            f"{self.options.subject.name} on {self.machine.name} ({self.machine.source}), "
            f"{self.memory / 2**30:.4g} GiB of memory"
        )
        for mode in self.options.modes:
            self._profile_mode(mode)
        if not self.folder.rows:
            reasons = dict.fromkeys(cell.reason for cell in self.refused)
            raise CannotProfileError(f"{self.options.subject.name} cannot be profiled: {'; '.join(reasons)}")
        self._add(self.refused)
        for make in (tables.fit_table, tables.crossover_table, tables.extrapolation_table):
            self._show(make(self.folder.rows))
        if not self.to_measure:
            self.console.line("Nothing was measured, so nothing is extrapolated: see --measure-upto.")

    def write(self) -> None:
        """The files of the run."""
        options = self.options
        self.folder.write_results(
            environment.collect(), [], model=options.subject.name, contexts=list(options.contexts),
            modes=list(options.modes), attentions=list(options.attentions), memory_bytes=self.memory,
            machine=vars(self.machine),
        )  # fmt: skip
        pictures = self._draw()
        sections = [table.markdown() for table in self.tables]
        sections += [f"![{path.stem}](plots/{path.name})\n" for path in pictures]
        self.folder.write_text("summary.md", "\n".join([f"# fusedformer profile: {options.subject.name}\n", *sections]))

    def _find_machine(self) -> Machine:
        if not self.to_measure:
            return machines.unmeasured(self.device)
        self.console.step("peaks of this machine: a large product and a large copy")
        return machines.measured(self.device)

    def _profile_mode(self, mode: str) -> None:
        settings: dict[str, Setting] = {}
        times: dict[str, TimesAt] = {}
        families: dict[str, Family] = {}
        low, high = min(self.options.contexts), max(self.options.contexts)
        for attention in self.options.attentions:
            setting = Setting(self.options.subject, mode, attention, self.device_type)
            self.console.step(f"{mode}, attention {attention}: tracing")
            try:
                families[attention] = setting.family(low, high)
            except (NoSuchStepError, ValueError, RuntimeError, NotImplementedError) as error:
                reason = without_folders(str(error))
                self.refused.append(_nothing(setting, 0, reason))
                self.console.line(f"{mode}, attention {attention}: none, {reason}")
                continue
            settings[attention], times[attention] = setting, self._times(setting, families[attention])
        for attention, setting in settings.items():
            self._add(self._breakdowns(setting, families[attention], times[attention]))
            self.console.step(f"{mode}, attention {attention}: what fits")
            self._add(fit(setting, families[attention], self.memory, low, high, self.machine.name))
            known = times[attention]
            measured = known if isinstance(known, Measured) else None
            self._add(extrapolation(setting, measured, self.options.contexts, self.machine.name))
        if settings:
            self._add(crossovers(settings, times, self.machine.name))
            self._show(tables.growth_table(self.folder.rows, mode))
            first = next(iter(settings))
            context = self._longest_that_fits(families[first])
            self._show(tables.breakdown_table(self.folder.rows, mode, first, context))
            self._export(settings[first], context, times[first])

    def _times(self, setting: Setting, family: Family) -> TimesAt:
        if not self.to_measure:
            return Modelled(family, self.machine)
        lengths = [setting.subject.length(context) for context in self.to_measure]
        say = _saying(self.console, setting)
        return Measured(setting, family, lengths, self.device, self.machine, say)

    def _breakdowns(self, setting: Setting, family: Family, times: TimesAt) -> Iterator[Cell]:
        for wanted in self.options.contexts:
            context = setting.subject.length(wanted)
            sheet = family.at(context)
            try:
                yield from breakdown(setting, context, sheet, times.at(context))
            except NotMeasuredError as error:
                yield _nothing(setting, context, str(error))
            peak = partial(
                setting.cell, BREAKDOWN, context=context, quantity=cells.PEAK, unit="B", machine=self.machine.name
            )
            yield peak(value=sheet.peak, obtained=PREDICTED)
            if isinstance(times, Measured) and context in times.peaks:
                yield peak(value=times.peaks[context], obtained=MEASURED)

    def _longest_that_fits(self, family: Family) -> int:
        """The longest context asked for that fits; the shortest where none does."""
        lengths = [self.options.subject.length(context) for context in self.options.contexts]
        fitting = [length for length in lengths if family.at(length).peak <= self.memory]
        return max(fitting, default=min(lengths))

    def _export(self, setting: Setting, context: int, times: TimesAt) -> None:
        """The whole model's step, all blocks, as files for other tools: the memory at one context, and a timeline.

        That is of the longest context that was measured; where none was, of the same one, modelled.
        """
        self.console.step(f"{setting.mode}: timeline and memory at {context}")
        trace = setting.trace(context, None)
        seconds = model_seconds(sheet_of(trace), self.machine)
        obtained: list[Obtained] = [MODELLED] * len(seconds)
        exports.write_snapshot(self.folder.partial / f"{setting.mode}-{exports.SNAPSHOT}", trace, seconds)
        if isinstance(times, Measured) and times.runs:
            context = max(times.runs)
            trace = setting.trace(context, None)
            sheet, measured = sheet_of(trace), times.runs[context]
            seconds, obtained = measured.seconds_of(sheet), measured.obtained_of(sheet)
        title = f"{setting.subject.name} {setting.mode}, attention {setting.attention}, context {context}"
        title += f", {self.machine.name} ({self.machine.source})"
        exports.write_timeline(
            self.folder.partial / f"{setting.mode}-{exports.TIMELINE}", trace, seconds, obtained, title
        )

    def _draw(self) -> list[Path]:
        if find_spec("matplotlib") is None:
            self.console.line("plots skipped: matplotlib is not installed, pip install 'fusedformer[bench]' brings it")
            return []
        from fusedformer.benchmarks.profile import pictures

        self.console.step("pictures")
        return pictures.draw(self.folder.rows, self.machine, self.memory, self.folder.plots)

    def _add(self, found: Iterator[Cell] | Sequence[Cell]) -> None:
        for cell in found:
            self.folder.add(cell)

    def _show(self, table: Table) -> None:
        if table.lines:
            self.tables.append(table)
            self.console.table(table)


def _saying(console: Console, setting: Setting) -> Callable[[int], None]:
    return lambda context: console.step(f"{setting.mode}, attention {setting.attention}: measuring {context}")


def _nothing(setting: Setting, context: int, reason: str) -> Cell:
    return setting.cell(BREAKDOWN, context=context, quantity=cells.TIME, reason=reason)
