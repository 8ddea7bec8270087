"""One run of `verify`: every model loaded, held against its definition and its public implementation, timed, drawn.

"kernels" is what `fusedformer doctor` says an op uses on this machine; "definitions" the same model with every op that
has one computed by its definition in kernels/reference.py. Times are interleaved, on the same weights and threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.op import FORWARD, WORLDS
from fusedformer.benchmarks.harness.timing import (
    LEAST_ROUNDS,
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
from fusedformer.benchmarks.report.tables import Table, duration, environment_table
from fusedformer.benchmarks.verify.inputs import MissingError
from fusedformer.benchmarks.verify.subjects import SUBJECTS, Compute, Figure, Subject, largest_difference
from fusedformer.kernels import library

KERNELS, DEFINITIONS, PUBLIC = "kernels", "definitions", "Hugging Face"
# Of the largest value: sums in another order, and on a GPU matrix products of PyTorch's default precision.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-3}
SECONDS = 20.0  # of timing for one model


@dataclass(frozen=True)
class Verified:
    """What was found of one model; of the public implementation, nothing where it is not installed."""

    name: str
    figures: Sequence[Figure]
    differences: dict[str, float]  # of another way to compute, from ours with kernels
    largest: float  # value, of ours with kernels
    samples: dict[str, list[float]]  # seconds, one value a round
    missing: str = ""  # the line that installs the public implementation

    def is_right(self, tolerance: float) -> bool:
        """Whether all figures are as expected, and no way to compute differs by more than this share."""
        close = all(difference <= tolerance * self.largest for difference in self.differences.values())
        return close and all(figure.is_right for figure in self.figures)

    def ratio(self, way: str) -> Interval:
        """Their time over ours with kernels."""
        return ratio(self.samples[way], self.samples[KERNELS])

    def rows(self, world: str, tolerance: float) -> list[Row]:
        """One row for each way to compute; the error is the difference from ours with kernels, over the tolerance."""
        rows = []
        for way, samples in self.samples.items():
            low, median, high = self.ratio(way)
            error = self.differences.get(way, 0.0) / (tolerance * self.largest)
            rows.append(Row(
                kind="time", subject=self.name, case="real input", dtype="float32", world=world, direction=FORWARD,
                contender=way, status="ok" if error <= 1 else "wrong", reason="" if error <= 1 else "differs from ours",
                error_ratio=error, time_p20_s=percentile(samples, 0.2), time_p50_s=percentile(samples, 0.5),
                time_p80_s=percentile(samples, 0.8), ratio=median, ratio_low=low, ratio_high=high,
                rounds=len(samples), samples_s=tuple(samples),
            ))  # fmt: skip
        return rows


@dataclass
class Report:
    """A run so far."""

    verified: list[Verified] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # of a model that was not loaded, the line that installs it
    pictures: list[str] = field(default_factory=list)


def run(names: Sequence[str], output: Path, console: Console) -> int:
    """Verify these models and write a folder; the exit status: 1 if one is wrong, else 3 if one could not be run.

    Raises:
        ValueError: the output is an existing file or a folder with something in it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tolerance, report = TOLERANCES[device.type], Report()
    with RunFolder(output) as folder, torch.inference_mode():
        for name in names:
            try:
                console.step(f"{name}: loading")
                subject = SUBJECTS[name](device)
            except MissingError as missing:
                report.missing[name] = str(missing)
                continue
            report.verified.append(verify(name, subject, console.step))
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


def verify(name: str, subject: Subject, step: Callable[[str], None], seconds: float = SECONDS) -> Verified:
    """Compute the model's figures, its differences and its times."""
    step(f"{name}: figures")
    figures = subject.figures()
    runs: dict[str, Compute] = {KERNELS: subject.ours, DEFINITIONS: partial(by_definition, subject.ours)}
    missing = ""
    try:
        step(f"{name}: {PUBLIC}")
        runs[PUBLIC] = subject.theirs()
    except MissingError as error:
        missing = str(error)
    outputs = {way: compute() for way, compute in runs.items()}
    ours = outputs.pop(KERNELS)
    step(f"{name}: times")
    clock = CudaClock() if ours.is_cuda else WallClock()
    samples = measure(runs, clock, Plan(seconds=seconds, min_rounds=LEAST_ROUNDS, max_rounds=25)).samples
    return Verified(
        name=name,
        figures=figures,
        differences={way: largest_difference(ours, output) for way, output in outputs.items()},
        largest=ours.abs().max().item(),
        samples=samples,
        missing=missing,
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
    columns = ("model", "figure", "found", "expected", "computed by", "largest difference", "time", "theirs / ours")
    lines = [line for verified in report.verified for line in model_lines(verified, tolerance)]
    lines += [(name, "not installed", "-", "-", "-", "-", "-", "-") for name in report.missing]
    notes = [
        f"Differences from ours with kernels, in float32: right up to {tolerance:g} of the largest value.",
        "Times: median over interleaved rounds and its 95% interval; theirs / ours above 1: ours is faster.",
        *(f"{name}: {line}" for name, line in report.missing.items()),
        *dict.fromkeys(f"{PUBLIC}: {verified.missing}" for verified in report.verified if verified.missing),
        *(f"plots/{file}" for file in report.pictures),
    ]
    return Table("Real models", columns, lines, notes)


def model_lines(verified: Verified, tolerance: float) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    ways = list(verified.samples)
    for index in range(max(len(ways), len(verified.figures))):
        figure_cells = way_cells = ("", "", "")
        if index < len(verified.figures):
            figure = verified.figures[index]
            found = figure.found if figure.is_right else f"WRONG: {figure.found}"
            figure_cells = (figure.name, found, figure.expected)
        computed_by = ways[index] if index < len(ways) else ""
        if computed_by:
            way_cells = (difference(verified, computed_by, tolerance), *times(verified, computed_by))
        lines.append((verified.name if index == 0 else "", *figure_cells, computed_by, *way_cells))
    return lines


def difference(verified: Verified, way: str, tolerance: float) -> str:
    if way == KERNELS:
        return "-"
    found = verified.differences[way]
    text = f"{found:.1e} of {verified.largest:.3g}"
    return text if found <= tolerance * verified.largest else f"WRONG: {text}"


def times(verified: Verified, way: str) -> tuple[str, str]:
    low, median, high = median_interval(verified.samples[way])
    time = f"{duration(median)} [{duration(low)}, {duration(high)}]"
    if way == KERNELS:
        return time, "-"
    low, median, high = verified.ratio(way)
    return time, f"{median:.2f} [{low:.2f}, {high:.2f}]"
