"""Time contenders side by side: interleaved rounds, medians, and an interval for the ratio that needs no normal law.

A round times every contender once in some order and once in reverse (A B B A or B A A B), so a machine that slows down
steadily slows both sums alike; the ratio is taken within a round, and the figure is the median over rounds.

Where tensors lie in memory moves a time by several percent: on one CPU the gradient of softmax is 4% slower if what it
reads begins at a page and not 64 bytes behind. So contenders whose buffers are their own are set up anew for each half
of a round, in the order in which they are then timed: in the second half each has the place that the other had before.
Chance says who begins (Curtsinger and Berger, "Stabilizer", 2013, on what steady places do to a comparison).

The interval of the median is that of order statistics: the k-th smallest and k-th largest of n values enclose the
median unless at most k - 1 of n fair coins fall on one side (Conover, "Practical Nonparametric Statistics", section
3.2).

Measuring ends when the interval is narrow, and that favours intervals that are narrow by chance. So the interval is
looked at after a few planned numbers of rounds only, and each of its sides misses the median with a probability of TAIL
instead of 2.5% (Jennison and Turnbull, "Group Sequential Methods", chapter 2). In simulation it holds in 95.5% of runs.

On a GPU the rounds come in batches. A monitor is asked around each, and one that the GPU throttled in is made again.
"""

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

LEAST_ROUNDS = 6  # fewer have no 95% interval
MAX_REPEATED = 5  # batches; a GPU that is too hot after that stays so
LOOKS = (6, 12, 25, 50, 100)  # the numbers of rounds after which the interval may end the measuring
TAIL = 0.0175
MOST_PASSES = 10  # through the contenders before they are set up anew
Run = Callable[[], object]


class Renewed(NamedTuple):
    """A contender with buffers of its own: `make` sets it up anew and gives its call."""

    make: Callable[[], Run]


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


class Monitor(Protocol):
    """What watches the device between batches of rounds."""

    def is_fit(self) -> bool:
        """Take a reading; whether the device was at the speed it is meant to have since the last."""


class NoMonitor:
    """For a device that tells nothing of itself."""

    def is_fit(self) -> bool:
        return True


@dataclass(frozen=True)
class Plan:
    """How long to measure: until the ratio is known precisely, or `seconds` are spent on `min_rounds` or more.

    These may take longer, up to `limit_seconds`, within which at least LEAST_ROUNDS have to be.
    """

    seconds: float = 5.0
    limit_seconds: float = math.inf
    min_rounds: int = 20
    max_rounds: int = 200
    batch_rounds: int = 10
    sample_seconds: float = 2e-3  # a sample repeats its call until it lasts this long, far above the clock's step
    precision: float = 0.005  # half the interval over the median, for every contender

    def is_over(self, rounds: int, spent: float) -> bool:
        """Whether so many rounds, which took so many seconds, are enough however imprecise they are."""
        if rounds >= self.min_rounds and spent >= self.seconds:
            return True
        return rounds >= self.max_rounds or (rounds >= LEAST_ROUNDS and spent >= self.limit_seconds)


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


class Measured(NamedTuple):
    """Seconds of one call of every contender, one value a round; values of the same round belong together."""

    samples: dict[str, list[float]]
    repeated_batches: int


def measure(
    contenders: Mapping[str, Run | Renewed], clock: Clock, plan: Plan, monitor: Monitor | None = None
) -> Measured:
    """Time all contenders in interleaved rounds; what is `Renewed` is set up twice in each.

    Raises:
        TooSlowError: the least number of rounds would take more than `plan.limit_seconds`.
        RunError: a contender raised.
    """
    session = _Session(contenders, clock, plan)
    monitor = monitor or NoMonitor()
    monitor.is_fit()
    repeated = 0
    with _without_garbage_collection():
        while not session.is_over:
            kept = session.rounds
            session.batch()
            if not monitor.is_fit() and repeated < MAX_REPEATED:
                session.forget_after(kept)
                repeated += 1
    return Measured(session.samples, repeated)


class _Session:
    """The rounds of one measurement so far."""

    def __init__(self, contenders: Mapping[str, Run | Renewed], clock: Clock, plan: Plan) -> None:
        self.names, self.clock, self.plan, self.random = list(contenders), clock, plan, random.Random(0)
        self.makes = {name: one.make for name, one in contenders.items() if isinstance(one, Renewed)}
        self.runs = {name: one for name, one in contenders.items() if not isinstance(one, Renewed)}
        self.samples: dict[str, list[float]] = {name: [] for name in contenders}
        self.spent, self.is_over = 0.0, False
        set_up = min(self._set_up(self.names) for _ in range(2))
        seconds = {name: _warm_seconds(partial(self._timed, name)) for name in contenders}
        self.repeats = {name: _repeats(seconds[name], plan.sample_seconds) for name in contenders}
        of_a_pass = sum(self.repeats[name] * seconds[name] for name in contenders)
        # So that setting up takes two thirds of the time at most.
        self.passes = min(MOST_PASSES, max(1, int(set_up / of_a_pass)))
        needed = LEAST_ROUNDS * 2 * (set_up + self.passes * of_a_pass)
        if needed > plan.limit_seconds:
            raise TooSlowError(
                f"{LEAST_ROUNDS} rounds need {needed:.3g} s, {plan.limit_seconds:.3g} s are left for them"
            )

    @property
    def rounds(self) -> int:
        return min(map(len, self.samples.values()))

    def batch(self) -> None:
        """Rounds until one of them ends the measuring, or `batch_rounds`."""
        for _ in range(self.plan.batch_rounds):
            self._round()
            is_known = self.rounds in LOOKS and _is_precise(self.samples, self.plan.precision)
            self.is_over = is_known or self.plan.is_over(self.rounds, self.spent)
            if self.is_over:
                break

    def forget_after(self, rounds: int) -> None:
        """Rounds that do not count; the time that they took does."""
        for values in self.samples.values():
            del values[rounds:]
        self.is_over = False

    def _round(self) -> None:
        order = self.random.sample(self.names, len(self.names))
        forth, back = self._half(order), self._half(order[::-1])
        for name in self.names:
            self.samples[name].append((forth[name] + back[name]) / 2)

    def _half(self, order: Sequence[str]) -> dict[str, float]:
        """Seconds of a call of each."""
        self.spent += self._set_up(order)
        passes = [{name: self._timed(name, self.repeats[name]) for name in order} for _ in range(self.passes)]
        self.spent += sum(self.repeats[name] * one[name] for one in passes for name in order)
        return {name: statistics.median(one[name] for one in passes) for name in order}

    def _set_up(self, order: Sequence[str]) -> float:
        """Make what is to be renewed in this order, then call each, untimed; the seconds that it took.

        All are dropped before: one that is made while the others live gets the place that it had.
        """
        start, renewed = time.perf_counter(), [name for name in order if name in self.makes]
        for name in self.makes:
            self.runs.pop(name, None)
        for name in renewed:
            with _blaming(name):
                self.runs[name] = self.makes[name]()
        for name in renewed:
            with _blaming(name):
                self.runs[name]()
        return time.perf_counter() - start

    def _timed(self, name: str, repeats: int) -> float:
        with _blaming(name):
            return self.clock.time(self.runs[name], repeats)


@contextlib.contextmanager
def _blaming(contender: str) -> Iterator[None]:
    """What is raised here is that contender's."""
    try:
        yield
    except Exception as error:
        raise RunError(contender) from error


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Interval:
    """Their time over ours, paired by round."""
    return median_interval([their / our for their, our in zip(theirs, ours, strict=True)])


def median_interval(values: Sequence[float]) -> Interval:
    """Median of `values` and its 95% interval.

    Raises:
        ValueError: there are fewer than LEAST_ROUNDS values, whose extremes enclose the median with less than 95%.
    """
    if len(values) < LEAST_ROUNDS:
        raise ValueError(f"a 95% interval of the median needs at least {LEAST_ROUNDS} values, got {len(values)}")
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


def repeats_of(timed: Callable[[int], float], sample_seconds: float) -> int:
    """How often a call is repeated for a sample of that length; `timed` takes a number of calls."""
    return _repeats(_warm_seconds(timed), sample_seconds)


def _repeats(seconds: float, sample_seconds: float) -> int:
    return max(1, math.ceil(sample_seconds / seconds))


def _warm_seconds(timed: Callable[[int], float]) -> float:
    """What a call takes after the first, which compiles and allocates; above 0, whatever the clock's step."""
    timed(1)
    return max(min(timed(1), timed(1)), 1e-9)


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
