"""One line of a benchmark: the same computation by several contenders, timed side by side where they are right.

A wrong answer gets no time: every contender is held against float64 before it is timed.
"""

import contextlib
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fusedformer.benchmarks.harness import timing
from fusedformer.benchmarks.harness.accuracy import worst
from fusedformer.benchmarks.harness.implementation import OURS, MissingError
from fusedformer.benchmarks.harness.instruments import Instruments, Prepared, Ready
from fusedformer.benchmarks.harness.timing import Plan
from fusedformer.benchmarks.report.rows import OUT_OF_MEMORY, Row, Status, without_folders

AGAIN = "ours again"


@dataclass(frozen=True)
class Verdict:
    """What holding a contender against float64 came to; the fields are those of a row."""

    status: Status = "ok"
    reason: str = ""
    error_ratio: float | None = None
    worst_tensor: str = ""
    compile_s: float | None = None


@dataclass(frozen=True)
class Work:
    """What one call has to do at least, and the unit of the rate that tells how fast it is done."""

    flops: float | None
    n_bytes: float | None
    unit: str  # "GB" (1e9 bytes) or "TFLOP"

    @property
    def amount(self) -> float:
        """In `unit`."""
        amount = self.n_bytes if self.unit == "GB" else self.flops
        assert amount is not None  # of what the unit counts
        return amount / (1e9 if self.unit == "GB" else 1e12)

    def rate(self, seconds: float) -> float:
        """In `unit` per second."""
        return self.amount / seconds


@dataclass(frozen=True)
class Contender:
    """A way to compute it: `judge` holds it against float64, `prepare` sets up what is timed."""

    judge: Callable[[], Verdict]
    prepare: Callable[[], Prepared]
    version: str = ""


@dataclass(frozen=True)
class Comparison:
    """What is compared. Nothing is allocated or computed before `measured`.

    `count` finds the work where that takes a while; what it raises leaves the rows without rates.
    """

    subject: str
    case: str
    dtype: str
    world: str
    direction: str
    contenders: Mapping[str, Contender]
    work: Work | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    count: Callable[[], Work] | None = None

    def __str__(self) -> str:
        return f"{self.subject} {self.direction} {self.case} {self.dtype}"

    @property
    def key(self) -> tuple[str, ...]:
        """That of its rows: `Row.comparison`."""
        return self._row(OURS, Verdict()).comparison

    def skipped(self, reason: str) -> list[Row]:
        """The rows of a comparison that is not made."""
        return [self._row(name, Verdict("skipped", reason)) for name in self.contenders]

    def without(self, reasons: Mapping[str, str]) -> tuple["Comparison", list[Row]]:
        """The comparison of the other contenders, and the rows of these, which are skipped for their reasons."""
        rest = {name: one for name, one in self.contenders.items() if name not in reasons}
        rows = [self._row(name, Verdict("skipped", reason)) for name, reason in reasons.items()]
        return replace(self, contenders=rest), rows

    def against_itself(self) -> "Comparison":
        """Ours against ours: what is no difference at all, as this machine tells it."""
        ours = self.contenders[OURS]
        return replace(self, contenders={OURS: ours, AGAIN: ours})

    def measured(self, instruments: Instruments, plan: Callable[[], Plan]) -> list[Row]:
        """Time every contender whose answer is right; the rows of the others say why they have no time.

        `plan` is asked once the contenders have been judged, which takes time too.
        """
        if self.count is not None:
            return self._counted(self.count).measured(instruments, plan)
        rows: dict[str, Row] = {}
        ready: dict[str, Ready] = {}
        for name, contender in self.contenders.items():
            rows[name], found = self._candidate(name, contender, instruments)
            if found is not None:
                ready[name] = found
        for name, fields in self._time(ready, rows, instruments, plan()).items():
            rows[name] = self._with_rates(replace(rows[name], **fields), instruments)
        ours = rows.get(OURS)
        return [_compared(row, ours) for row in rows.values()]

    def _counted(self, count: Callable[[], Work]) -> "Comparison":
        work = None
        with contextlib.suppress(Exception):  # a library that is not here, say, of which the verdicts will tell
            work = count()
        return replace(self, work=work, count=None)

    def _candidate(self, name: str, contender: Contender, instruments: Instruments) -> tuple[Row, Ready | None]:
        """The row of a contender, and what is to be timed if its answer is right."""
        verdict, ready, found = contender.judge(), None, {}
        if verdict.status == "ok":
            try:
                ready = instruments.ready(contender.prepare)
                found = ready.fields()
            except Exception as error:  # running out of memory, for one, is a result
                verdict, ready = replace(verdict, **_failure(error)), None
        if verdict.status != "ok":
            instruments.release()
        return self._row(name, verdict, version=contender.version, **found), ready

    def _time(
        self, ready: dict[str, Ready], rows: dict[str, Row], instruments: Instruments, plan: Plan
    ) -> dict[str, dict[str, Any]]:
        """Fields of those that can be timed; one that fails in the middle leaves, and the others start anew."""
        while ready:
            try:
                return instruments.timed(ready, plan)
            except timing.TooSlowError as error:
                for name in ready:
                    rows[name] = replace(rows[name], status="skipped", reason=str(error))
                break
            except timing.RunError as error:
                rows[error.contender] = replace(rows[error.contender], **_failure(error.__cause__ or error))
                del ready[error.contender]
                instruments.release()
        return {}

    def _row(self, contender: str, verdict: Verdict, **fields: Any) -> Row:
        work = self.work or Work(None, None, "")
        return Row(
            kind="time",
            subject=self.subject,
            case=self.case,
            sizes=dict(self.sizes),
            options=dict(self.options),
            dtype=self.dtype,
            world=self.world,
            direction=self.direction,
            contender=contender,
            flops=work.flops,
            n_bytes=work.n_bytes,
            **vars(verdict),
            **fields,
        )

    def _with_rates(self, row: Row, instruments: Instruments) -> Row:
        if self.work is None or row.time_p50_s is None:
            return row
        rate, unit = self.work.rate(row.time_p50_s), f"{self.work.unit}/s"
        measured, sheet = (instruments.share(machine, rate, unit, self.dtype) for machine in instruments.machines)
        return replace(row, rate=rate, rate_unit=unit, peak_share=measured, datasheet_share=sheet)


def _compared(row: Row, ours: Row | None) -> Row:
    if ours is None or row.contender == OURS or not (row.samples_s and ours.samples_s):
        return row
    ratio = timing.ratio(row.samples_s, ours.samples_s)
    return replace(row, ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)


def judge(error_ratios: Callable[[], Mapping[str, float]]) -> Verdict:
    """Call `error_ratios`, which gives the share of its error budget by tensor; raising is a verdict too."""
    try:
        ratios = error_ratios()
    except Exception as error:  # whatever a contender raises is its result
        return Verdict(**_failure(error))
    name = max(ratios, key=lambda name: worst([ratios[name]]))
    ratio = ratios[name]
    if not math.isfinite(ratio):
        return Verdict("wrong", f"{name} is NaN or infinite where float64 is not, or the reverse", None, name)
    if ratio > 1:
        return Verdict("wrong", f"error of {name} is {ratio:.3g} times its budget", ratio, name)
    return Verdict("ok", "", ratio, name)


def describe(error: BaseException) -> str:
    """An exception in one line of a length that a table can take."""
    if _is_out_of_memory(error):
        return OUT_OF_MEMORY
    text = str(error) if isinstance(error, MissingError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(without_folders(text), width=300)


def _failure(error: BaseException) -> dict[str, Any]:
    """Status and reason of a row."""
    status: Status = "failed"
    if isinstance(error, MissingError):
        status = "missing"
    elif _is_out_of_memory(error):
        status = OUT_OF_MEMORY
    return {"status": status, "reason": describe(error)}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
