"""Paired timing: what it concludes from clocks that drift and stutter, and when it stops."""

import gc
import math
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fusedformer.benchmarks.harness import timing
from fusedformer.benchmarks.harness.timing import CudaClock, Plan, TooSlowError, WallClock

COVERAGE_RUNS = 1000
FIXED_ROUNDS = Plan(min_rounds=12, max_rounds=12)


class NoisyClock:
    """A call takes as long as it returns, on a machine that slows down steadily and stutters at random."""

    def __init__(self, seed: int, drift: float = 0.0, noise: float = 0.05) -> None:
        self.random, self.drift, self.noise, self.slowness = random.Random(seed), drift, noise, 1.0

    def time(self, run: Callable[[], object], repeats: int) -> float:
        self.slowness += self.drift
        seconds = run()
        assert isinstance(seconds, float)
        return seconds * self.slowness * self.random.lognormvariate(0.0, self.noise)


def lasts(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def measured_ratio(clock: timing.Clock, ours: float, theirs: float) -> timing.Interval:
    samples = timing.measure({"ours": lasts(ours), "theirs": lasts(theirs)}, clock, FIXED_ROUNDS).samples
    return timing.ratio(samples["theirs"], samples["ours"])


def test_a_against_itself_is_1_within_the_interval() -> None:
    plan = Plan(min_rounds=3600, max_rounds=3600)
    samples = timing.measure({"ours": lasts(1e-3), "theirs": lasts(1e-3)}, NoisyClock(0), plan).samples
    runs = [slice(start, start + 12) for start in range(0, 3600, 12)]
    intervals = [timing.ratio(samples["theirs"][run], samples["ours"][run]) for run in runs]
    holds_1 = sum(interval.low <= 1 <= interval.high for interval in intervals)
    assert holds_1 / len(intervals) > 0.93
    assert all(abs(interval.median - 1) < 0.1 for interval in intervals)


@pytest.mark.parametrize("noise", [0.005, 0.02, 0.035, 0.05, 0.2])
def test_the_interval_of_the_default_plan_holds_in_95_of_100_runs(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it ends the measuring, which it does after 6, 12, ... rounds or never, by the noise."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes longer than a simulated run
    plan, clock = Plan(seconds=math.inf), NoisyClock(0, noise=noise)
    contenders = {"ours": lasts(1.0), "theirs": lasts(1.0)}
    intervals = []
    for _ in range(COVERAGE_RUNS):
        samples = timing.measure(contenders, clock, plan).samples
        intervals.append(timing.ratio(samples["theirs"], samples["ours"]))
    assert sum(interval.low <= 1 <= interval.high for interval in intervals) / COVERAGE_RUNS >= 0.945


@pytest.mark.parametrize("seed", range(5))
def test_twice_as_slow_is_seen(seed: int) -> None:
    interval = measured_ratio(NoisyClock(seed), 1e-3, 2e-3)
    assert 1 < 1.8 < interval.low <= interval.median <= interval.high < 2.2


def test_a_machine_that_slows_down_steadily_favours_nobody() -> None:
    interval = measured_ratio(NoisyClock(0, drift=0.05, noise=0.0), 1e-3, 1e-3)
    assert interval == pytest.approx((1, 1, 1))


def test_contenders_are_interleaved_forth_and_back() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "AB"}

    class CountingClock:
        def time(self, run: Callable[[], object], repeats: int) -> float:
            run()
            return 1.0

    timing.measure(runs, CountingClock(), Plan(min_rounds=20, max_rounds=20, precision=-1.0))
    assert "".join(calls[:6]) == "AAABBB"
    rounds = {"".join(calls[start : start + 4]) for start in range(6, len(calls), 4)}
    assert (rounds, len(calls)) == ({"ABBA", "BAAB"}, 6 + 4 * 20)


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    repeats: list[int] = []

    class RecordingClock:
        def time(self, run: Callable[[], object], count: int) -> float:
            repeats.append(count)
            return 1e-4

    timing.measure({"ours": lasts(0.0)}, RecordingClock(), Plan(sample_seconds=2e-3, max_rounds=6))
    assert repeats == [1, 1, 1] + [20] * 12


def test_measuring_stops_when_precise_or_out_of_time() -> None:
    def rounds(clock: timing.Clock, plan: Plan) -> int:
        return len(timing.measure({"ours": lasts(0.1), "theirs": lasts(0.1)}, clock, plan).samples["ours"])

    noisy, steady = NoisyClock(0, noise=0.3), NoisyClock(0, noise=0.0)
    assert rounds(steady, Plan(seconds=1e9)) == timing.LEAST_ROUNDS
    assert rounds(noisy, Plan(seconds=0.0)) == 20
    assert rounds(noisy, Plan(seconds=0.0, limit_seconds=4.0)) == 10
    assert 20 <= rounds(noisy, Plan(seconds=10.0)) <= 30
    assert rounds(noisy, Plan(seconds=1e9, max_rounds=50)) == 50


class ThrottlingMonitor:
    """A GPU that throttles in the batches of these numbers."""

    def __init__(self, *throttled: int) -> None:
        self.throttled, self.asked = throttled, -1

    def is_fit(self) -> bool:
        self.asked += 1
        return self.asked not in self.throttled


def test_a_batch_in_which_the_gpu_throttled_is_made_again() -> None:
    calls: list[str] = []

    class CountingClock:
        def time(self, run: Callable[[], object], repeats: int) -> float:
            calls.append("call")
            return float(len(calls))

    plan = Plan(min_rounds=30, max_rounds=30, batch_rounds=10, precision=-1.0)
    measured = timing.measure({"ours": lasts(1.0)}, CountingClock(), plan, ThrottlingMonitor(2, 3))
    assert (len(measured.samples["ours"]), measured.repeated_batches) == (30, 2)
    assert len(calls) == 3 + 2 * 50
    first, second = measured.samples["ours"][9:11]
    assert second - first > 2 * 20  # what came between is forgotten


def test_a_gpu_that_stays_hot_is_measured_all_the_same() -> None:
    monitor = ThrottlingMonitor(*range(1, 100))
    plan = Plan(min_rounds=20, max_rounds=20, precision=-1.0)
    measured = timing.measure({"ours": lasts(1.0)}, NoisyClock(0), plan, monitor)
    assert (len(measured.samples["ours"]), measured.repeated_batches) == (20, timing.MAX_REPEATED)


def test_calls_too_slow_for_the_least_rounds_are_not_begun() -> None:
    slow = {"ours": lasts(1.0), "theirs": lasts(2.0)}
    with pytest.raises(TooSlowError, match="6 rounds need 36 s, 30 s are left for them"):
        timing.measure(slow, NoisyClock(0, noise=0.0), Plan(seconds=5.0, limit_seconds=30.0))
    assert (
        len(timing.measure(slow, NoisyClock(0, noise=0.0), Plan(seconds=5.0, limit_seconds=40.0)).samples["ours"]) == 6
    )


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (10, 2, 9), (20, 5, 16), (100, 39, 62)])
def test_the_interval_is_that_of_order_statistics(n: int, low: int, high: int) -> None:
    values = random.Random(0).sample(range(1, n + 1), n)
    assert timing.median_interval(values) == (low, (n + 1) / 2, high)


def test_too_few_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 6 values, got 5"):
        timing.median_interval([1.0] * 5)


def test_percentiles_are_numpys() -> None:
    values = list(np.random.default_rng(0).normal(size=17))
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert timing.percentile(values, share) == pytest.approx(np.quantile(values, share))
    assert timing.percentile([3.0], 0.8) == 3.0


def test_the_wall_clock_times_one_call_of_many() -> None:
    seconds = WallClock().time(lambda: time.sleep(0.004), repeats=3)
    assert 0.004 <= seconds < 0.1


def test_the_cuda_clock_times_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: "Event") -> float:
            return 6.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert CudaClock().time(lambda: log.append("run"), repeats=2) == pytest.approx(3e-3)
    assert log == ["record", "run", "run", "record", "synchronize"]


def test_garbage_collection_waits_and_comes_back() -> None:
    states: list[bool] = []

    class WatchingClock:
        def time(self, run: Callable[[], object], repeats: int) -> float:
            states.append(gc.isenabled())
            return 1.0

    timing.measure({"ours": lasts(0.0)}, WatchingClock(), Plan(max_rounds=6))
    assert not any(states[3:])
    assert gc.isenabled()
