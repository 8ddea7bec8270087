"""Code timed against itself is the same, and 3% are found, where places in memory, drift and stutter move the times."""

import gc
import math
import random
from collections import Counter

import pytest

from fusedformer.benchmarks.harness import timing
from fusedformer.benchmarks.harness.timing import Interval, Plan, Renewed
from fusedformer.benchmarks.harness.verdicts import verdict

CELLS = 300
SECONDS = 2e-3


class Heap:
    """Places for buffers, each of its own slowness; the lowest one that is free is taken, as an allocator does."""

    def __init__(self, random: random.Random, spread: float) -> None:
        self.slowness = [random.lognormvariate(0.0, spread) for _ in range(8)]
        self.free = list(range(8))

    def make(self, seconds: float) -> "Buffer":
        return Buffer(self, seconds)


class Buffer:
    """What a contender holds; its call says how long it takes there."""

    def __init__(self, heap: Heap, seconds: float) -> None:
        self.heap, self.seconds, self.place = heap, seconds, min(heap.free)
        heap.free.remove(self.place)

    def __call__(self) -> float:
        return self.seconds * self.heap.slowness[self.place]

    def __del__(self) -> None:
        self.heap.free.append(self.place)


class VirtualMachine:
    """A clock of a machine that drifts, breathes, and is taken away for a while now and then."""

    def __init__(self, random: random.Random) -> None:
        self.random, self.now, self.drift = random, 0.0, random.uniform(-0.05, 0.05)

    def time(self, run: timing.Run, repeats: int) -> float:
        seconds = run()
        assert isinstance(seconds, float)
        self.now += seconds * repeats
        slowness = math.exp(self.drift * self.now) * (1 + 0.02 * math.sin(2 * self.now))
        noise = self.random.lognormvariate(0.0, 0.01)
        stolen = self.random.paretovariate(1.5) if self.random.random() < 0.03 else 0.0
        return seconds * slowness * (noise + stolen)


def ratio_of(cell: int, factor: float, *, is_renewed: bool = True) -> Interval:
    """Of a contender that takes `factor` times as long as the other, in one cell of a run."""
    chance = random.Random(cell)
    heap = Heap(chance, spread=0.03)

    def contender(seconds: float) -> timing.Run | Renewed:
        return Renewed(lambda: heap.make(seconds)) if is_renewed else heap.make(seconds)

    contenders = {"ours": contender(SECONDS), "theirs": contender(factor * SECONDS)}
    samples = timing.measure(contenders, VirtualMachine(chance), Plan(seconds=15.0)).samples
    return timing.ratio(samples["theirs"], samples["ours"])


@pytest.fixture(autouse=True)
def quick_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes longer than a simulated cell."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def verdicts(factor: float, *, is_renewed: bool = True) -> Counter[str]:
    return Counter(verdict(ratio_of(cell, factor, is_renewed=is_renewed)) for cell in range(CELLS))


def test_99_of_100_cells_of_the_same_code_are_the_same() -> None:
    found = verdicts(1.0)
    assert found["SAME"] >= 0.99 * CELLS, found
    assert not found["FASTER"] + found["SLOWER"], found


@pytest.mark.parametrize(
    ("factor", "expected", "opposite"), [(1.03, "SLOWER", "FASTER"), (1 / 1.03, "FASTER", "SLOWER")]
)
def test_three_percent_are_found_in_either_direction(factor: float, expected: str, opposite: str) -> None:
    found = verdicts(factor)
    assert found[expected] >= 0.95 * CELLS, found
    assert not found["SAME"] + found[opposite], found


def test_buffers_that_stay_where_they_are_would_be_taken_for_a_difference() -> None:
    found = verdicts(1.0, is_renewed=False)
    assert found["FASTER"] + found["SLOWER"] > 0.2 * CELLS, found


def test_all_places_are_free_before_the_first_contender_is_set_up_again() -> None:
    heap, log = Heap(random.Random(0), spread=0.0), []

    def make(name: str) -> Buffer:
        made = heap.make(1.0)
        log.append((name, made.place))
        return made

    contenders = {name: Renewed(lambda name=name: make(name)) for name in "AB"}  # type: ignore[misc]
    timing.measure(contenders, VirtualMachine(random.Random(0)), Plan(min_rounds=20, max_rounds=20, precision=-1.0))
    assert Counter(log[4:]) == {("A", 0): 20, ("A", 1): 20, ("B", 0): 20, ("B", 1): 20}


def test_a_contender_that_cannot_be_set_up_again_is_the_one_to_blame() -> None:
    left = [lambda: 1.0] * 3
    contenders: dict[str, timing.Run | Renewed] = {"A": lambda: 1.0, "B": Renewed(lambda: left.pop())}
    with pytest.raises(timing.RunError, match="B raised while it was timed"):
        timing.measure(contenders, VirtualMachine(random.Random(0)), Plan())
