"""Barriers: the mbarrier of shared memory, and the named barriers that inline assembly reaches."""

from __future__ import annotations

from fusedformer.simulator.clocks import Past, Timeline
from fusedformer.simulator.errors import Hazard


class MBarrier:
    """Counts arrivals and bytes; a phase is over when none of either is due.

    Whoever waits for a phase comes after all that its arrivals had behind them, and after the TMA loads that landed.
    """

    def __init__(self, name: str, count: int, initialised: tuple[Timeline, int], has_clocks: bool) -> None:
        if count < 1:
            raise ValueError(f"{name} is initialised with a count of {count}, which must be 1 or more")
        self.name, self.count, self.has_clocks = name, count, has_clocks
        self.timeline = Timeline(f"TMA load on {name}")  # its moments are the phases
        self.phase = 0
        self.arrivals_due, self.bytes_due = count, 0
        self.initialised = initialised  # when
        self._gathered, self.released = Past(), Past()
        self._waits: list[tuple[Timeline, int]] = []  # when waits for the last phase that is over returned

    def arrive(self, past: Past, count: int = 1, bytes_expected: int = 0) -> None:
        """Take arrivals off, and let the phase await further bytes."""
        if count > self.arrivals_due:
            raise Hazard(f"more arrivals at {self.name} than its count of {self.count}, in phase {self.phase}")
        self._gathered.join(past)
        self.arrivals_due -= count
        self.bytes_due += bytes_expected
        self._complete()

    def land(self, past: Past, nbytes: int) -> int:
        """Take bytes of a TMA load off; the moment of `timeline` that the load belongs to."""
        phase = self.phase + 1
        self._gathered.join(past)
        self.bytes_due -= nbytes
        self._complete()
        return phase

    def _complete(self) -> None:
        if self.arrivals_due or self.bytes_due:
            return
        self._check_waits()
        self.phase += 1
        self.arrivals_due = self.count
        self._gathered.seen[self.timeline] = self.phase
        self.released = self._gathered.copy()

    def _check_waits(self) -> None:
        """A wait that a further phase can overtake sees the parity of the one before, and misses its own."""
        for timeline, time in self._waits if self.has_clocks else ():
            if time > self._gathered.seen[timeline]:
                wait = f"{timeline.name}'s wait for phase {self.phase - 1}"
                raise Hazard(f"{self.name}: phase {self.phase} ends without order after {wait}, which could miss it")
        self._waits.clear()

    def note_wait(self, timeline: Timeline) -> None:
        """A wait for the last phase that is over has returned."""
        self._waits.append((timeline, timeline.now))

    def is_over(self, parity: int) -> bool:
        """Whether the phase of this parity is: the hardware knows no more of its number."""
        return self.phase % 2 != parity

    def state(self) -> str:
        """What a deadlock report says."""
        return f"in phase {self.phase} with {self.arrivals_due} arrivals and {self.bytes_due} bytes due"


class NamedBarrier:
    """One of the 16 barriers of bar.sync and bar.arrive: a round is over when its number of threads have arrived."""

    def __init__(self, number: int) -> None:
        self.name = f"named barrier {number}"
        self.round = 0
        self.threads = self.due = 0
        self._gathered, self.released = Past(), Past()

    def arrive(self, past: Past, threads: int, expected: int) -> int:
        """Add the threads of a partition to a round of `expected`; the round's number."""
        this_round = self.round
        if not self.due:
            self.threads = self.due = expected
        if expected != self.threads:
            raise Hazard(f"{self.name} is used for {self.threads} and for {expected} threads in round {this_round}")
        if threads > self.due:
            raise Hazard(f"{threads} threads arrive at {self.name}, which awaits {self.due} more")
        self._gathered.join(past)
        self.due -= threads
        if not self.due:
            self.round += 1
            self.released = self._gathered.copy()
        return this_round

    def state(self) -> str:
        """What a deadlock report says."""
        return f"in round {self.round} with {self.due} of {self.threads} threads due"
