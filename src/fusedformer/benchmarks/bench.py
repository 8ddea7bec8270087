"""`fusedformer bench`: errors, times of ops and models, and the static table, into one run folder.

In the order of their worth. Within its budget a run measures what it can; what it had no time for are rows that say so,
and `--resume` measures those.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fusedformer.benchmarks import machines, models, patched, resuming
from fusedformer.benchmarks import sweep as sweeping
from fusedformer.benchmarks.harness import op as op_harness
from fusedformer.benchmarks.harness import worlds
from fusedformer.benchmarks.harness.comparison import AGAIN, Comparison, describe
from fusedformer.benchmarks.harness.costs import Costs
from fusedformer.benchmarks.harness.implementation import is_ours
from fusedformer.benchmarks.harness.instruments import Instruments
from fusedformer.benchmarks.harness.op import Case, Op
from fusedformer.benchmarks.harness.timing import Interval, Plan
from fusedformer.benchmarks.harness.verdicts import Noise
from fusedformer.benchmarks.ops import ARCHITECTURES, OPS, PATCHED, SUBJECTS, TIMED_OPS
from fusedformer.benchmarks.report import machine, run_folder, tables
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.rows import Row, Status
from fusedformer.benchmarks.report.run_folder import Run, RunFolder
from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static import collect as static_world
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.benchmarks.sweep import Sweep, parse_sweep
from fusedformer.kernels import emulation

CLOSING_SECONDS = 10.0  # of the budget, kept for pictures and files
QUICK_SECONDS, SECONDS = 5.0, 15.0  # of timing for one comparison, at most
STATIC_ARCH, STATIC_SHARE = 90, 0.15  # of what the errors have left, in a quick run
NOISE_SHARE = 0.05  # of the same, for ours against ours


@dataclass(frozen=True)
class Options:
    """What to measure, and for how long."""

    output: Path
    subjects: Sequence[str] = ()  # ops and models by name; all of them if empty
    quick: bool = False
    budget_s: float = 480.0
    seed: int = 0
    sweep: Sweep | None = None  # cases in place of each op's own
    self_test: bool = False  # ours against ours

    @classmethod
    def of(cls, run: Run, budget_s: float) -> "Options":
        """Those that a run was started with, and another budget."""
        settings = run.settings
        return cls(
            output=run.path,
            subjects=settings["subjects"],
            quick=settings["quick"],
            budget_s=budget_s,
            seed=settings["seed"],
            sweep=parse_sweep(settings["sweep"]) if settings["sweep"] else None,
            self_test=settings["self_test"],
        )

    def ops(self, device_type: str) -> list[Op]:
        """Those to measure: the ones named, or all that know what is swept.

        Raises:
            ValueError: the sweep does not fit those named, or none.
        """
        if self.sweep is None:
            return [op for name, op in TIMED_OPS.items() if name in (self.subjects or SUBJECTS)]
        named = [name for name in self.subjects if name in ARCHITECTURES or name in PATCHED]
        if named:
            raise ValueError(f"a sweep is of ops: {', '.join(named)} cannot be swept")
        fitting = [op for op in TIMED_OPS.values() if self.sweep.suits(op, device_type)]
        ops = [TIMED_OPS[name] for name in self.subjects] or fitting
        sweeping.check(self.sweep, ops, device_type)
        return ops


@dataclass(frozen=True)
class Task:
    """What one run does, checked: nothing is measured or written yet."""

    options: Options
    folder: RunFolder
    device: torch.device
    ops: Sequence[Op]
    environment: dict[str, Any]

    @classmethod
    def of(cls, options: Options, resumed: Run | None = None) -> "Task":
        """
        Args:
            options: what to measure; of a run that goes on, `Options.of` it.
            resumed: a run that goes on: what it has measured stays, but for what it had no time for.

        Raises:
            ValueError: the output is an existing file or a folder with something in it, the sweep fits no op, or the
                run that is to go on was made on another machine or with other versions.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ops, environment = options.ops(device.type), machine.collect()
        if resumed is None:
            return cls(options, RunFolder(options.output), device, ops, environment)
        resuming.check_same(resumed, environment)
        task = cls(options, RunFolder.reopened(resumed), device, ops, environment)
        contenders = {comparison.key: set(comparison.contenders) for comparison in task.comparisons()}
        task.folder.rows = resuming.finished_rows(resumed.rows, contenders)
        return task

    @property
    def architectures(self) -> list[models.Architecture]:
        """Our models to measure."""
        return [model for name, model in ARCHITECTURES.items() if name in self._models]

    @property
    def patched(self) -> list[patched.PatchedModel]:
        """Models of other libraries to measure: in a quick run those that are named."""
        if self.options.quick and not self.options.subjects:
            return []
        return [model for name, model in PATCHED.items() if name in self._models]

    @property
    def _models(self) -> Sequence[str]:
        return self.options.subjects or (() if self.options.sweep else SUBJECTS)

    def comparisons(self) -> list[Comparison]:
        """Of times, all of them, the most valuable first; nothing is allocated for them yet.

        Quick: of a GPU the first case of each op, of a CPU, where our ops are PyTorch's, the models alone.
        """
        seed, found = self.options.seed, []
        for op in self.ops:
            for case in self._cases(op):
                found += op_harness.comparisons(op, case, self.device, seed)
        for architecture in self.architectures:
            found += models.comparisons(architecture, self.device, seed)
        for model in self.patched:
            found += patched.comparisons(model, self.device, seed)
        return [comparison.against_itself() for comparison in found] if self.options.self_test else found

    def _cases(self, op: Op) -> Sequence[Case]:
        if self.options.sweep is not None:
            return self.options.sweep.cases(op, self.device.type)
        cases = op.time_cases[self.device.type]
        if not self.options.quick:
            return cases
        return cases[: 1 if self.device.type == "cuda" else 0]


def run(task: Task, console: Console) -> bool:
    """Measure, print, and write the run folder; whether all of ours was right."""
    folder = task.folder
    try:
        # Of the emulated world, which FUSEDFORMER_EMULATE may have chosen, a process of its own takes care.
        with emulation.emulated(False), folder:
            bench = _Bench(task, console)
            bench.measure()
            bench.write()
    except BaseException:
        if folder.partial.exists():
            console.line(f"Not finished: `fusedformer bench --resume {folder.path}` goes on from {folder.partial}")
        raise
    console.line(f"Run folder: {folder.path}")
    return bench.is_right


class _Bench:
    """One run: what has been measured so far, and the time that is left."""

    def __init__(self, task: Task, console: Console) -> None:
        self.task, self.options, self.folder, self.device = task, task.options, task.folder, task.device
        self.ops, self.environment, self.console = task.ops, task.environment, console
        self.deadline = time.monotonic() + task.options.budget_s - CLOSING_SECONDS
        self.reserve = 0.0  # seconds that the times leave to what comes after them
        self.peaks: list[machines.Machine] = []
        self.noise = Noise(0, 0, 0.0)
        self.static_rows: list[StaticRow] = []
        self.tables: list[Table] = []

    @property
    def is_right(self) -> bool:
        """Whether no figure of ours is missing because of an error of ours, and a self-test found little noise."""
        wrong = [row for row in self.folder.rows if is_ours(row.contender) and row.status in ("wrong", "failed")]
        if self.options.self_test and not self.noise.is_low:
            return False
        return not wrong and not any(row.problems for row in self.static_rows)

    @property
    def _spent(self) -> str:
        return f"the budget of {self.options.budget_s:.0f} s was spent"

    @property
    def settings(self) -> dict[str, Any]:
        """How the run was started, and what holds for all of it: see `run_folder.Run`."""
        return {
            "command": run_folder.BENCH,
            "subjects": list(self.options.subjects),
            "quick": self.options.quick,
            "budget_s": self.options.budget_s,
            "seed": self.options.seed,
            "sweep": str(self.options.sweep or ""),
            "self_test": self.options.self_test,
            "peaks": [dataclasses.asdict(peak) for peak in self.peaks],
            "noise": dataclasses.asdict(self.noise),
        }

    @property
    def error_ops(self) -> list[Op]:
        """Those whose errors are measured in all worlds; a sweep or self-test is about times."""
        if self.options.sweep or self.options.self_test:
            return []
        return [op for op in self.ops if op.name in OPS]

    def measure(self) -> None:
        self.folder.write_settings(self.environment, **self.settings)
        self._show(tables.environment_table(self.environment))
        if load := machines.load_by_others(self.device):
            self.console.line(f"This machine is busy, {load}: expect verdicts of UNSURE.")
        # A GPU's time is for times: what is timed is judged too, and `make gpu` has run the tests before.
        steps = [self._measure_errors, self._measure_times]
        for step in steps[::-1] if self._is_gpu_first else steps:
            step()
        if self.error_ops and self.options.quick:
            self._collect_static()
            self._show(tables.static_table(self.static_rows))

    @property
    def _is_gpu_first(self) -> bool:
        return self.device.type == "cuda" and not self.options.quick

    def _measure_errors(self) -> None:
        if self.error_ops:
            self._collect(self._errors())
            self._show(tables.error_table(self.folder.rows))

    def _measure_times(self) -> None:
        if comparisons := self._comparisons():
            with self._on_stream():
                self._time(comparisons)
        for table in tables.time_tables(self.folder.rows):
            self._show(table)

    def _time(self, comparisons: list[Comparison]) -> None:
        self.console.step("peaks: a large matrix product and a large copy")
        sheet = machines.datasheet(machines.device_name(self.device))
        self.peaks = [machines.measured(self.device), *([sheet] if sheet else [])]
        self.folder.write_settings(self.environment, **self.settings)
        instruments = Instruments.of(self.device, *self.peaks)
        shares = STATIC_SHARE * bool(self.error_ops and self.options.quick), NOISE_SHARE * (not self.options.self_test)
        self.reserve = sum(shares) * self._seconds_left()
        self._collect(self._times(comparisons, instruments))
        if self.options.self_test:
            rows = [row for row in self.folder.rows if row.contender == AGAIN]
        else:
            self.reserve = shares[0] * self._seconds_left()
            rows = self._noise_rows(instruments)
        self.noise = Noise.of([
            Interval(row.ratio_low, row.ratio, row.ratio_high)
            for row in rows
            if row.ratio is not None and row.ratio_low is not None and row.ratio_high is not None
        ])  # fmt: skip
        self._show(tables.noise_table(self.noise))

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """A GPU's work on a stream that a graph can record."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.stream(torch.cuda.Stream()):
            yield

    def write(self) -> None:
        static = [row.to_dict() for row in self.static_rows]
        self.folder.write_results(self.environment, static, **self.settings)
        pictures = self._draw()
        sections = [table.markdown() for table in self.tables]
        sections += [f"![{path.stem}](plots/{path.name})\n" for path in pictures]
        self.folder.write_text("summary.md", "\n".join(["# fusedformer bench\n", *sections]))

    def _errors(self) -> Iterator[Row]:
        cpu = torch.device("cpu")
        for device in dict.fromkeys((cpu, self.device)):
            world = op_harness.WORLDS[device.type]
            for op in self._without_errors(world):
                if self._is_gpu_first and not self._seconds_left():
                    yield worlds.row_without_figure(op, world, "skipped", self._spent)
                    continue
                self.console.step(f"errors of {op.name}, {world} world")
                yield from worlds.error_rows(op, device, self.options.seed)
        yield from self._emulated_errors()
        if self.device == cpu:
            yield from self._no_errors("gpu", "missing", "no CUDA device")

    def _without_errors(self, world: str) -> list[Op]:
        known = {row.subject for row in self.folder.rows if row.kind == "error" and row.world == world}
        return [op for op in self.error_ops if op.name not in known]

    def _emulated_errors(self) -> Iterator[Row]:
        self.console.step("errors, emulated world: the first run builds csrc with g++")
        if self._is_gpu_first:
            yield from self._no_errors(worlds.EMULATED, "skipped", "the time of a GPU is for the GPU; --quick runs it")
        elif shutil.which("g++") is None:
            yield from self._no_errors(worlds.EMULATED, "missing", "no g++")
        elif ops := self._without_errors(worlds.EMULATED):
            # Half of what is left at most: times are worth as much.
            yield from worlds.emulated_error_rows(ops, self.options.seed, self._seconds_left() / 2)

    def _no_errors(self, world: str, status: Status, reason: str) -> Iterator[Row]:
        yield from (worlds.row_without_figure(op, world, status, reason) for op in self._without_errors(world))

    def _collect_static(self) -> None:
        progress = partial(self.console.count, f"static: kernel variants for sm_{STATIC_ARCH}")
        names = [op.name for op in self.error_ops]
        try:
            self.static_rows = static_world.collect([STATIC_ARCH], names, progress=progress, deadline=self.deadline)
        except Exception as error:  # what has been measured so far is not lost to it
            self.static_rows = [StaticRow(op=name, arch=STATIC_ARCH, error=describe(error)) for name in names]

    def _times(self, comparisons: list[Comparison], instruments: Instruments) -> Iterator[Row]:
        at_most = QUICK_SECONDS if self.options.quick else SECONDS
        total, costs = len(comparisons), Costs()
        while comparisons:
            share = partial(self._share, len(comparisons), at_most)
            # Dropped before the next one is made: its tensors are freed with it.
            comparison = comparisons.pop(0)
            self.console.step(f"time of {comparison}", done=total - len(comparisons) - 1, total=total)
            left = self._seconds_left() - self.reserve
            needed = costs.expected(comparison)
            if left <= 0:
                yield from comparison.skipped(self._spent)
            elif needed > left:
                reason = f"to judge the answers would take about {needed:.0f} s, {left:.0f} s of the budget are left"
                yield from comparison.skipped(reason)
            else:
                others, left_out = comparison.without(costs.too_slow(comparison, share().limit_seconds))
                rows = others.measured(instruments, costs.noting(others, share))
                costs.note_compiles(rows)
                yield from rows + left_out

    def _noise_rows(self, instruments: Instruments) -> list[Row]:
        """Ours against ours: the first comparison of each subject."""
        first: dict[str, Comparison] = {}
        for comparison in self.task.comparisons():
            first.setdefault(comparison.subject, comparison)
        waiting, rows = [comparison.against_itself() for comparison in first.values()], []
        while waiting and self._seconds_left() > self.reserve:
            share = partial(self._share, len(waiting), QUICK_SECONDS)
            comparison = waiting.pop(0)
            self.console.step(f"noise of {comparison}")
            rows += comparison.measured(instruments, share)
        return rows

    def _share(self, comparisons: int, at_most: float) -> Plan:
        """For one of that many comparisons, of the time that is left."""
        share = max(0.0, self._seconds_left() - self.reserve) / comparisons
        return Plan(seconds=min(share, at_most), limit_seconds=share)

    def _comparisons(self) -> list[Comparison]:
        """Those that the run folder does not have yet."""
        known = {row.comparison for row in self.folder.rows}
        return [comparison for comparison in self.task.comparisons() if comparison.key not in known]

    def _draw(self) -> list[Path]:
        if find_spec("matplotlib") is None:
            self.console.line("plots skipped: matplotlib is not installed, pip install 'fusedformer[bench]' brings it")
            return []
        from fusedformer.benchmarks.report import plots

        return plots.draw(self.folder.rows, self.folder.plots)

    def _collect(self, rows: Iterator[Row]) -> None:
        for row in rows:
            self.folder.add(row)

    def _show(self, table: Table) -> None:
        self.tables.append(table)
        self.console.table(table)

    def _seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())
