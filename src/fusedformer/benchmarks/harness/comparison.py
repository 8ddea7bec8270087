"""One line of a benchmark: the same computation by several contenders, timed side by side where they are right.

A wrong answer gets no time: every contender is held against float64 before it is timed.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fusedformer.benchmarks.harness import timing
from fusedformer.benchmarks.harness.accuracy import worst
from fusedformer.benchmarks.harness.timing import Clock, Plan, Run
from fusedformer.benchmarks.report.rows import Row, Status, without_folders

OURS = "ours"


@dataclass(frozen=True)
class Verdict:
    """What holding a contender against float64 came to; the fields are those of a row."""

    status: Status = "ok"
    reason: str = ""
    error_ratio: float | None = None
    worst_tensor: str = ""


@dataclass(frozen=True)
class Work:
    """What one call has to do at least: bytes to move, or FLOPs to compute."""

    amount: float
    unit: str  # "GB" (1e9 bytes) or "TFLOP"

    def rate(self, seconds: float) -> float:
        """In `unit` per second."""
        return self.amount / seconds


@dataclass(frozen=True)
class Contender:
    """A way to compute it: `judge` holds it against float64, `prepare` sets up and gives one call to be timed."""

    judge: Callable[[], Verdict]
    prepare: Callable[[], Run]


@dataclass(frozen=True)
class Comparison:
    """What is compared. Nothing is allocated or computed before `measured`."""

    subject: str
    case: str
    dtype: str
    world: str
    direction: str
    contenders: Mapping[str, Contender]
    work: Work | None = None

    def __str__(self) -> str:
        return f"{self.subject} {self.direction} {self.case} {self.dtype}"

    def skipped(self, reason: str) -> list[Row]:
        """The rows of a comparison that is not made."""
        return [self._row(name, Verdict("skipped", reason)) for name in self.contenders]

    def measured(self, clock: Clock, plan: Callable[[], Plan]) -> list[Row]:
        """Time every contender whose answer is right; the rows of the others say why they have no time.

        `plan` is asked once the contenders have been judged, which takes time too.
        """
        rows: dict[str, Row] = {}
        runs: dict[str, Run] = {}
        for name, contender in self.contenders.items():
            verdict = contender.judge()
            if verdict.status == "ok":
                try:
                    runs[name] = contender.prepare()
                    clock.time(runs[name], 1)  # which waits for a GPU, and so meets the errors of its kernels
                except Exception as error:  # running out of memory, for one, is a result
                    runs.pop(name, None)
                    verdict = replace(verdict, status="failed", reason=describe(error))
            rows[name] = self._row(name, verdict)
        for name, samples in self._time(runs, rows, clock, plan()).items():
            rows[name] = self._timed(rows[name], samples)
        ours = rows.get(OURS)
        return [self._compared(row, ours) for row in rows.values()]

    def _time(self, runs: dict[str, Run], rows: dict[str, Row], clock: Clock, plan: Plan) -> dict[str, list[float]]:
        """Samples of those that can be timed; one that fails in the middle leaves `runs`, and the others start anew."""
        while runs:
            try:
                return timing.measure(runs, clock, plan)
            except timing.TooSlowError as error:
                for name in runs:
                    rows[name] = replace(rows[name], status="skipped", reason=str(error))
                break
            except timing.RunError as error:
                rows[error.contender] = replace(
                    rows[error.contender], status="failed", reason=describe(error.__cause__ or error)
                )
                del runs[error.contender]
        return {}

    def _row(self, contender: str, verdict: Verdict) -> Row:
        return Row(
            kind="time",
            subject=self.subject,
            case=self.case,
            dtype=self.dtype,
            world=self.world,
            direction=self.direction,
            contender=contender,
            **vars(verdict),
        )

    def _timed(self, row: Row, samples: Sequence[float]) -> Row:
        p20, p50, p80 = (timing.percentile(samples, share) for share in (0.2, 0.5, 0.8))
        row = replace(
            row, time_p20_s=p20, time_p50_s=p50, time_p80_s=p80, rounds=len(samples), samples_s=tuple(samples)
        )
        if self.work is None:
            return row
        return replace(row, rate=self.work.rate(p50), rate_unit=f"{self.work.unit}/s")

    def _compared(self, row: Row, ours: Row | None) -> Row:
        if ours is None or row.contender == OURS or not (row.samples_s and ours.samples_s):
            return row
        ratio = timing.ratio(row.samples_s, ours.samples_s)
        return replace(row, ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)


def judge(error_ratios: Callable[[], Mapping[str, float]]) -> Verdict:
    """Call `error_ratios`, which gives the share of its error budget by tensor; raising is a verdict too."""
    try:
        ratios = error_ratios()
    except Exception as error:  # whatever a contender raises is its result
        return Verdict("failed", reason=describe(error))
    name = max(ratios, key=lambda name: worst([ratios[name]]))
    ratio = ratios[name]
    if not math.isfinite(ratio):
        return Verdict("wrong", f"{name} is NaN or infinite where float64 is not, or the reverse", None, name)
    if ratio > 1:
        return Verdict("wrong", f"error of {name} is {ratio:.3g} times its budget", ratio, name)
    return Verdict("ok", "", ratio, name)


def describe(error: BaseException) -> str:
    """An exception in one line of a length that a table can take."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    return textwrap.shorten(without_folders(f"{type(error).__name__}: {error}"), width=300)
