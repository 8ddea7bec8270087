"""Vector clocks: which accesses happened before which, whatever the schedule of this run was.

Source: Lamport, "Time, clocks, and the ordering of events in a distributed system" (1978); the kept last accesses
follow Flanagan and Freund, "FastTrack" (2009). The second clock stands for PTX's proxies ("Memory consistency model"):
an asynchronous operation sees what a thread stored only past a proxy fence on the path between the two.
"""

from __future__ import annotations


class Timeline:
    """Moments that follow one another: a partition's own accesses, its products, its TMA stores, a barrier's phases."""

    def __init__(self, name: str, *, is_generic: bool = False) -> None:
        self.name = name
        self.now = 0  # the last moment so far
        self.is_generic = is_generic  # accesses of threads, which asynchronous operations see past a fence only


class Clock(dict[Timeline, int]):
    """The last moment of each timeline that has been seen."""

    def __missing__(self, timeline: Timeline) -> int:
        return 0

    def join(self, other: Clock) -> None:
        """See all that `other` has seen."""
        for timeline, time in other.items():
            if time > self[timeline]:
                self[timeline] = time


class Past:
    """What happened before a point of a program: all of it, and what a fence_async_shared lies behind."""

    def __init__(self, seen: Clock | None = None, fenced: Clock | None = None) -> None:
        self.seen = Clock(seen or {})
        self.fenced = Clock(fenced or {})

    def copy(self) -> Past:
        """The same past, which goes on apart."""
        return Past(self.seen, self.fenced)

    def join(self, other: Past) -> None:
        """Come after `other` too."""
        self.seen.join(other.seen)
        self.fenced.join(other.fenced)

    def fence(self) -> None:
        """Let asynchronous operations see all that was seen."""
        self.fenced.join(self.seen)
