"""One line of a benchmark: the same computation by several contenders, timed side by side where they are right.

A wrong answer gets no time: every contender is held against float64 before it is timed.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fusedformer.benchmarks.harness import timing
from fusedformer.benchmarks.harness.timing import Clock, Plan, Run
from fusedformer.benchmarks.report.rows import Row, Status

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

    def measured(self, clock: Clock, plan: Plan) -> list[Row]:
        """Time every contender whose answer is right; the rows of the others say why they have no time."""
        runs: dict[str, Run] = {}
        rows: dict[str, Row] = {}
        for name, contender in self.contenders.items():
            verdict = contender.judge()
            if verdict.status == "ok":
                try:
                    run = contender.prepare()
                    run()
                    runs[name] = run
                except Exception as error:  # running out of memory, for one, is a result
                    verdict = Verdict("failed", describe(error))
            rows[name] = self._row(name, verdict)
        try:
            samples = timing.measure(runs, clock, plan) if runs else {}
        except timing.TooSlowError as error:
            return self.skipped(str(error))
        for name, values in samples.items():
            rows[name] = self._timed(rows[name], values, samples.get(OURS))
        return list(rows.values())

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

    def _timed(self, row: Row, samples: Sequence[float], ours: Sequence[float] | None) -> Row:
        p20, p50, p80 = (timing.percentile(samples, share) for share in (0.2, 0.5, 0.8))
        row = replace(
            row, time_p20_s=p20, time_p50_s=p50, time_p80_s=p80, rounds=len(samples), samples_s=tuple(samples)
        )
        if self.work is not None:
            row = replace(row, rate=self.work.rate(p50), rate_unit=f"{self.work.unit}/s")
        if ours is not None and row.contender != OURS:
            ratio = timing.ratio(samples, ours)
            row = replace(row, ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)
        return row


def judge(error_ratios: Callable[[], Mapping[str, float]]) -> Verdict:
    """Call `error_ratios`, which gives the share of its error budget by tensor; raising is a verdict too."""
    try:
        ratios = error_ratios()
    except Exception as error:  # whatever a contender raises is its result
        return Verdict("failed", reason=describe(error))
    worst = max(ratios, key=lambda name: ratios[name])
    if math.isinf(ratios[worst]):
        return Verdict("wrong", f"{worst} is NaN or infinite where float64 is not, or the reverse", None, worst)
    if ratios[worst] > 1:
        return Verdict("wrong", f"error of {worst} is {ratios[worst]:.3g} times its budget", ratios[worst], worst)
    return Verdict("ok", "", ratios[worst], worst)


def describe(error: BaseException) -> str:
    """An exception in one line of a length that a table can take."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return textwrap.shorten(f"{type(error).__name__}: {error}", width=300)
