"""One run of `verify`: every model loaded, held against its definition and its public implementation, timed, drawn.

"kernels" is what `fusedformer doctor` says an op uses on this machine; "definitions" the same model with every op that
has one computed by its definition in kernels/reference.py: of the forward pass alone. Times are interleaved, on the
same weights and threads.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.op import FORWARD, WORLDS
from fusedformer.benchmarks.harness.timing import (
    LEAST_ROUNDS,
    Clock,
    CudaClock,
    Interval,
    Plan,
    WallClock,
    measure,
    median_interval,
    percentile,
    ratio,
)
from fusedformer.benchmarks.report import machine
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import RunFolder
from fusedformer.benchmarks.report.tables import Table, duration, environment_table, rate
from fusedformer.benchmarks.verify.inputs import MissingError
from fusedformer.benchmarks.verify.subjects import SUBJECTS, Compute, Figure, Subject, Task, largest_difference
from fusedformer.kernels import library

KERNELS, DEFINITIONS = "kernels", "definitions"
# Of the largest value: sums in another order, on a GPU matrix products of PyTorch's default precision; in bfloat16
# values that are rounded between layers, so that near ties tokens come out one way or the other.
TOLERANCES = {
    ("cpu", torch.float32): 1e-4,
    ("cuda", torch.float32): 1e-3,
    ("cpu", torch.bfloat16): 5e-2,
    ("cuda", torch.bfloat16): 5e-2,
}
SECONDS = 20.0  # of timing for one task


@dataclass(frozen=True)
class Timed:
    """One task of a model: how far other ways to compute it are from ours with kernels, and the time each takes."""

    task: str
    differences: dict[str, float]
    largest: float  # value, of ours with kernels; 0 for tokens, which must be the same
    samples: dict[str, list[float]]  # seconds, one value a round
    missing: dict[str, str]  # of a public implementation, the line that installs it
    amount: float  # of the unit that is computed at once
    unit: str
    dtype: torch.dtype

    def is_right(self, tolerance: float) -> bool:
        """Whether no way to compute differs by more than this share."""
        return all(self.share(way, tolerance) <= 1 for way in self.differences)

    def share(self, way: str, tolerance: float) -> float:
        """Its difference over what is allowed: of numbers a share of the largest, in float32 not one token."""
        of_tokens = 0.5 if self.dtype == torch.float32 else math.inf
        return self.differences.get(way, 0.0) / (tolerance * self.largest if self.largest else of_tokens)

    def rate(self, way: str) -> float:
        """Units a second."""
        return self.amount / median_interval(self.samples[way]).median

    def ratio(self, way: str) -> Interval:
        """Their time over ours with kernels."""
        return ratio(self.samples[way], self.samples[KERNELS])


@dataclass(frozen=True)
class Verified:
    """What was found of one model."""

    name: str
    figures: Sequence[Figure]
    tasks: Sequence[Timed]

    def is_right(self, tolerance: float) -> bool:
        """Whether all figures are as expected, and no way to compute differs by more than this share."""
        return all(timed.is_right(tolerance) for timed in self.tasks) and all(
            figure.is_right for figure in self.figures
        )

    def rows(self, world: str, tolerance: float) -> list[Row]:
        """One row for each task and way to compute it; the error is the difference from ours over the tolerance."""
        rows = []
        for timed, way in self.ways():
            low, median, high = timed.ratio(way)
            samples, share = timed.samples[way], timed.share(way, tolerance)
            is_right = share <= 1
            rows.append(Row(
                kind="time", subject=self.name, case="real input", dtype=dtype_name(timed.dtype), world=world,
                direction=timed.task, contender=way, status="ok" if is_right else "wrong",
                reason="" if is_right else "differs from ours",
                error_ratio=share, rate=timed.rate(way), rate_unit=f"{timed.unit}/s",
                time_p20_s=percentile(samples, 0.2), time_p50_s=percentile(samples, 0.5),
                time_p80_s=percentile(samples, 0.8), ratio=median, ratio_low=low, ratio_high=high,
                rounds=len(samples), samples_s=tuple(samples),
            ))  # fmt: skip
        return rows

    def ways(self) -> list[tuple[Timed, str]]:
        """Every way to compute every task."""
        return [(timed, way) for timed in self.tasks for way in timed.samples]


@dataclass
class Report:
    """A run so far."""

    dtype: torch.dtype
    verified: list[Verified] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # of a model that was not loaded, the line that installs it
    pictures: list[str] = field(default_factory=list)


def run(names: Sequence[str], output: Path, console: Console, dtype: torch.dtype = torch.float32) -> int:
    """Verify these models and write a folder; the exit status: 1 if one is wrong, else 3 if one could not be run.

    Raises:
        ValueError: the output is an existing file or a folder with something in it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tolerance, report = TOLERANCES[device.type, dtype], Report(dtype)
    with RunFolder(output) as folder, torch.inference_mode():
        for name in names:
            try:
                console.step(f"{name}: loading")
                subject = SUBJECTS[name](device, dtype)
            except MissingError as missing:
                report.missing[name] = str(missing)
                continue
            report.verified.append(verify(name, subject, dtype, console.step))
            for row in report.verified[-1].rows(WORLDS[device.type], tolerance):
                folder.add(row)
            report.pictures += draw(name, subject, folder.plots)
        result, environment = table(report, tolerance), machine.collect()
        folder.write_results(environment, static=[], models=list(names))
        folder.write_text("summary.md", result.markdown() + environment_table(environment).markdown())
    console.table(result)
    console.line(f"Run folder: {output}")
    if not all(verified.is_right(tolerance) for verified in report.verified):
        return 1
    return 3 if report.missing else 0


def verify(
    name: str, subject: Subject, dtype: torch.dtype, step: Callable[[str], None], seconds: float = SECONDS
) -> Verified:
    """Compute the model's figures, its differences and its times."""
    step(f"{name}: figures")
    figures = subject.figures()
    device = next(subject.model.parameters()).device
    clock = CudaClock() if device.type == "cuda" else WallClock()

    def timed(task: str) -> Timed:
        return hold(task, subject.tasks[task], dtype, clock, seconds, lambda text: step(f"{name}, {task}: {text}"))

    return Verified(name, figures, [timed(task) for task in subject.tasks])


def hold(task: str, work: Task, dtype: torch.dtype, clock: Clock, seconds: float, step: Callable[[str], None]) -> Timed:
    """Do one task in every way there is, and time them."""
    runs: dict[str, Compute] = {KERNELS: work.ours}
    if task == FORWARD:
        runs[DEFINITIONS] = partial(by_definition, work.ours)
    missing = {}
    for implementation, load in work.theirs.items():
        step(implementation)
        try:
            runs[implementation] = load()
        except MissingError as error:
            missing[implementation] = str(error)
    outputs = {way: compute() for way, compute in runs.items()}
    ours = outputs.pop(KERNELS)
    step("times")
    samples = measure(runs, clock, Plan(seconds=seconds, min_rounds=LEAST_ROUNDS, max_rounds=25)).samples
    return Timed(
        task=task,
        differences={way: largest_difference(ours, output) for way, output in outputs.items()},
        largest=ours.abs().max().item() if ours.is_floating_point() else 0.0,
        samples=samples,
        missing=missing,
        amount=work.amount,
        unit=work.unit,
        dtype=dtype,
    )


def by_definition(compute: Callable[[], Tensor]) -> Tensor:
    """What is computed with kernels off."""
    with library.by_definition():
        return compute()


def draw(name: str, subject: Subject, folder: Path) -> list[str]:
    """The picture of what the model attends to, if there is one for it; its file's name."""
    from fusedformer.benchmarks.verify.pictures import PICTURES  # matplotlib takes a second to import

    if name not in PICTURES:
        return []
    file, fill = PICTURES[name]
    fill(subject, folder / file)
    return [file]


def table(report: Report, tolerance: float) -> Table:
    """One line for each model and way to compute it, the figures in the first."""
    columns = (
        "model", "figure", "found", "expected", "task", "computed by", "largest difference", "time", "rate",
        "theirs / ours",
    )  # fmt: skip
    lines = [line for verified in report.verified for line in model_lines(verified, tolerance)]
    lines += [(name, "not installed", *["-"] * (len(columns) - 2)) for name in report.missing]
    absent = {
        way: line for verified in report.verified for timed in verified.tasks for way, line in timed.missing.items()
    }
    notes = [
        f"Differences from ours with kernels, in {dtype_name(report.dtype)}: right up to {tolerance:g} of the largest; "
        f"of tokens, {'none' if report.dtype == torch.float32 else 'any, for near ties fall either way'}.",
        "Times: median over interleaved rounds and its 95% interval; theirs / ours above 1: ours is faster.",
        *(f"{name}: {line}" for name, line in report.missing.items()),
        *(f"{way}: {line}" for way, line in absent.items()),
        *(f"plots/{file}" for file in report.pictures),
    ]
    return Table("Real models", columns, lines, notes)


def model_lines(verified: Verified, tolerance: float) -> list[tuple[str, ...]]:
    """A line for each figure or way to compute, whichever are more."""
    figures = [
        (figure.name, figure.found if figure.is_right else f"WRONG: {figure.found}", figure.expected)
        for figure in verified.figures
    ]
    ways = [(timed.task, way, difference(timed, way, tolerance), *times(timed, way)) for timed, way in verified.ways()]
    names = [verified.name]
    padded = itertools.zip_longest(names, figures, ways)
    return [(name or "", *(figure or [""] * 3), *(way or [""] * 6)) for name, figure, way in padded]


def difference(timed: Timed, way: str, tolerance: float) -> str:
    if way == KERNELS:
        return "-"
    found = timed.differences[way]
    text = f"{found:.1e} of {timed.largest:.3g}" if timed.largest else f"{found:g} tokens"
    return text if timed.share(way, tolerance) <= 1 else f"WRONG: {text}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def times(timed: Timed, way: str) -> tuple[str, str, str]:
    low, median, high = median_interval(timed.samples[way])
    time = f"{duration(median)} [{duration(low)}, {duration(high)}]"
    speed = rate(timed.rate(way), f"{timed.unit}/s")
    if way == KERNELS:
        return time, speed, "-"
    low, median, high = timed.ratio(way)
    return time, speed, f"{median:.2f} [{low:.2f}, {high:.2f}]"
