"""`fusedformer bench`: errors, times of ops and models, and the static table, into one run folder.

In the order of their worth. Within its budget a run measures what it can; what it had no time for are rows that say so.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from fusedformer.benchmarks import models
from fusedformer.benchmarks.harness import op as op_harness
from fusedformer.benchmarks.harness import worlds
from fusedformer.benchmarks.harness.comparison import OURS, Comparison, describe
from fusedformer.benchmarks.harness.timing import CudaClock, Plan, WallClock
from fusedformer.benchmarks.ops import ARCHITECTURES, OPS, SUBJECTS
from fusedformer.benchmarks.report import machine, tables
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import RunFolder
from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static import collect as static_world
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.kernels import emulation

CLOSING_SECONDS = 10.0  # of the budget, kept for pictures and files
QUICK_SECONDS, SECONDS = 5.0, 15.0  # of timing for one comparison, at most
STATIC_ARCH, STATIC_SHARE = 90, 0.15  # of what the errors have left, in a quick run


@dataclass(frozen=True)
class Options:
    """What to measure, and for how long."""

    output: Path
    subjects: Sequence[str] = ()  # ops and models by name; all of them if empty
    quick: bool = False
    budget_s: float = 480.0
    seed: int = 0


def run(options: Options, console: Console) -> bool:
    """Measure, print, and write the run folder; whether all of ours was right.

    Raises:
        ValueError: the output is an existing file or a folder with something in it.
    """
    # Of the emulated world, which FUSEDFORMER_EMULATE may have chosen, a process of its own takes care.
    folder = RunFolder(options.output)
    try:
        with emulation.emulated(False), folder:
            bench = _Bench(options, console, folder)
            bench.measure()
            bench.write()
    except BaseException:
        if folder.partial.exists():
            console.line(f"Not finished; what had been measured is in {folder.partial}")
        raise
    console.line(f"Run folder: {options.output}")
    return bench.is_right


class _Bench:
    """One run: what has been measured so far, and the time that is left."""

    def __init__(self, options: Options, console: Console, folder: RunFolder) -> None:
        self.options, self.console, self.folder = options, console, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.deadline = time.monotonic() + options.budget_s - CLOSING_SECONDS
        subjects = options.subjects or SUBJECTS
        self.ops = [op for name, op in OPS.items() if name in subjects]
        self.architectures = [model for name, model in ARCHITECTURES.items() if name in subjects]
        self.environment = machine.collect()
        self.reserve = 0.0  # seconds that the times leave to the static table
        self.static_rows: list[StaticRow] = []
        self.tables: list[Table] = []

    @property
    def is_right(self) -> bool:
        """Whether no figure of ours is missing because of an error of ours."""
        wrong = [row for row in self.folder.rows if row.contender == OURS and row.status in ("wrong", "failed")]
        return not wrong and not any(row.problems for row in self.static_rows)

    def measure(self) -> None:
        self._show(tables.environment_table(self.environment))
        if self.ops:
            self._collect(self._errors())
            self._show(tables.error_table(self.folder.rows))
        self._collect(self._times())
        self._show(tables.time_table(self.folder.rows))
        if self.ops and self.options.quick:
            self._collect_static()
            self._show(tables.static_table(self.static_rows))

    def write(self) -> None:
        self.folder.write_results(
            self.environment,
            [row.to_dict() for row in self.static_rows],
            subjects=[*(op.name for op in self.ops), *(model.name for model in self.architectures)],
            quick=self.options.quick,
            budget_s=self.options.budget_s,
            seed=self.options.seed,
        )
        pictures = self._draw()
        sections = [table.markdown() for table in self.tables]
        sections += [f"![{path.stem}](plots/{path.name})\n" for path in pictures]
        self.folder.write_text("summary.md", "\n".join(["# fusedformer bench\n", *sections]))

    def _errors(self) -> Iterator[Row]:
        cpu = torch.device("cpu")
        for device in dict.fromkeys((cpu, self.device)):
            for op in self.ops:
                self.console.step(f"errors of {op.name}, {op_harness.WORLDS[device.type]} world")
                yield from worlds.error_rows(op, device, self.options.seed)
        yield from self._emulated_errors()
        if self.device == cpu:
            yield from self._skipped("gpu", "no CUDA device")

    def _emulated_errors(self) -> Iterator[Row]:
        self.console.step("errors, emulated world: the first run builds csrc with g++")
        if self.device.type == "cuda" and not self.options.quick:
            reason = "the time of a GPU is for the GPU; --quick runs it"
        elif shutil.which("g++") is None:
            reason = "no g++"
        else:
            # Half of what is left at most: times are worth as much.
            yield from worlds.emulated_error_rows(self.ops, self.options.seed, self._seconds_left() / 2)
            return
        yield from self._skipped(worlds.EMULATED, reason)

    def _skipped(self, world: str, reason: str) -> Iterator[Row]:
        yield from (worlds.row_without_figure(op, world, "skipped", reason) for op in self.ops)

    def _collect_static(self) -> None:
        def progress(done: int, total: int) -> None:
            if done % 10 == 0 or done == total:
                self.console.step(f"static: {done} of {total} kernel variants for sm_{STATIC_ARCH}")

        names = [op.name for op in self.ops]
        try:
            self.static_rows = static_world.collect([STATIC_ARCH], names, progress=progress, deadline=self.deadline)
        except Exception as error:  # what has been measured so far is not lost to it
            self.static_rows = [StaticRow(op=name, arch=STATIC_ARCH, error=describe(error)) for name in names]

    def _times(self) -> Iterator[Row]:
        clock = CudaClock() if self.device.type == "cuda" else WallClock()
        at_most = QUICK_SECONDS if self.options.quick else SECONDS
        comparisons = self._comparisons()
        self.reserve = STATIC_SHARE * self._seconds_left() if self.ops and self.options.quick else 0.0
        while comparisons:
            share = partial(self._share, len(comparisons), at_most)
            # Dropped before the next one is made: its tensors are freed with it.
            comparison = comparisons.pop(0)
            self.console.step(f"time of {comparison}")
            if self._seconds_left() > self.reserve:
                yield from comparison.measured(clock, share)
            else:
                yield from comparison.skipped(f"the budget of {self.options.budget_s:.0f} s was spent")

    def _share(self, comparisons: int, at_most: float) -> Plan:
        """For one of that many comparisons, of the time that is left."""
        share = max(0.0, self._seconds_left() - self.reserve) / comparisons
        return Plan(seconds=min(share, at_most), limit_seconds=share)

    def _comparisons(self) -> list[Comparison]:
        """Quick: of a GPU the first case of each op, of a CPU, where our ops are PyTorch's, the models alone."""
        found = []
        for op in self.ops:
            cases = op.time_cases[self.device.type]
            if self.options.quick:
                cases = cases[: 1 if self.device.type == "cuda" else 0]
            for case in cases:
                found += op_harness.comparisons(op, case, self.device, self.options.seed)
        for architecture in self.architectures:
            found += models.comparisons(architecture, self.device, self.options.seed)
        return found

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
