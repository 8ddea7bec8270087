"""Who goes on next: the partitions of a program, and the asynchronous operations under way.

A partition is a thread, but one of them runs at a time: before each operation that another could notice it calls
`step`, which draws what goes on next and hands over. The weights of the draw are random too, and spread over twelve
powers of two, so that some programs starve a partition or an asynchronous unit for as long as it lasts.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

import torch

from fusedformer.simulator.clocks import Past, Timeline
from fusedformer.simulator.errors import Deadlock, Hazard

HERE = str(Path(__file__).parent)
SPREAD = 6.0  # a weight is 2 to a power from -SPREAD to SPREAD


class _AbandonedError(BaseException):
    """Ends the thread of a partition whose program has failed elsewhere."""


class Event(NamedTuple):
    """The next step of an asynchronous operation. Those of one queue happen in order."""

    name: str
    queue: Hashable
    finish: Callable[[], None]


class Queue(Timeline):
    """Asynchronous operations of a partition that it waits for by counting; `now` is the number of those issued."""

    done = 0


class Partition:
    """The warps that run one function: a thread, its past, and its asynchronous operations."""

    def __init__(self, name: str, num_warps: int, body: Callable[[], None], past: Past) -> None:
        self.num_warps, self.body, self.past = num_warps, body, past.copy()
        self.timeline, self.products, self.stores = Timeline("", is_generic=True), Queue(""), Queue("")
        self.rename(name)
        self.is_ready: Callable[[], bool] | None = None
        self.awaited: Callable[[], str] | None = None
        self.baton = threading.Lock()
        self.thread: threading.Thread | None = None

    def rename(self, name: str) -> None:
        """Go on as a partition of this name."""
        self.name = self.timeline.name = name
        self.products.name, self.stores.name = f"{name}'s warpgroup_mma", f"{name}'s TMA store"

    def where(self) -> str:
        """The kernel's function and line that it has reached."""
        assert self.thread is not None and self.thread.ident is not None  # noqa: PT018
        frame: FrameType | None = sys._current_frames().get(self.thread.ident)
        while frame and frame.f_code.co_filename.startswith(HERE):
            frame = frame.f_back
        return f"{frame.f_code.co_name} line {frame.f_lineno}" if frame else "its start"

    def __str__(self) -> str:
        return f"{self.name}, {self.where()}, waits for {self.awaited() if self.awaited else 'its turn'}"


class Scheduler:
    """Runs the partitions of one program until all have ended."""

    def __init__(self, random: Random) -> None:
        self.partitions: list[Partition] = []  # that have not ended
        self._threads: list[threading.Thread] = []
        self.events: list[Event] = []
        self._random = random
        self._weights: dict[str, float] = defaultdict(lambda: 2 ** random.uniform(-SPREAD, SPREAD))
        self._current: Partition | None = None
        self._failure: BaseException | None = None
        self._finished = threading.Lock()

    @property
    def current(self) -> Partition:
        """The partition that runs."""
        assert self._current
        return self._current

    def add(self, name: str, num_warps: int, body: Callable[[], None], past: Past) -> Partition:
        """Start a partition, which gets its turn when one steps."""
        partition = Partition(name, num_warps, body, past)
        partition.baton.acquire()
        partition.thread = threading.Thread(target=self._live, args=(partition,), name=name, daemon=True)
        self._threads.append(partition.thread)
        self.partitions.append(partition)
        partition.thread.start()
        return partition

    def run(self) -> None:
        """Let the partitions go on until all have ended; raises what one of them raised."""
        self._finished.acquire()
        try:
            self._hand_over()
            self._finished.acquire()
        finally:
            self._failure = self._failure or (_AbandonedError() if self.partitions else None)
            for partition in self.partitions:
                partition.baton.release()
            for thread in self._threads:
                thread.join()
        if self._failure:
            raise self._failure

    def step(self, is_ready: Callable[[], bool] | None = None, awaited: Callable[[], str] | None = None) -> Partition:
        """Let others go on, and at least until `is_ready`; the partition that called, one moment later."""
        if self._failure:
            raise _AbandonedError
        partition = self.current
        partition.is_ready, partition.awaited = is_ready, awaited
        chosen = self._choose()
        if chosen is not partition:
            self._current = chosen
            chosen.baton.release()
            partition.baton.acquire()
            if self._failure:
                raise _AbandonedError
        partition.is_ready = partition.awaited = None
        partition.timeline.now += 1
        partition.past.seen[partition.timeline] = partition.timeline.now
        return partition

    def start(self, queue: Queue, name: str, finish: Callable[[], None]) -> None:
        """Put an operation under way that a partition waits for by counting."""

        def finish_and_count() -> None:
            finish()
            queue.done += 1

        queue.now += 1
        self.events.append(Event(name, queue, finish_and_count))

    def wait(self, queue: Queue, pending: int) -> int:
        """Wait for all operations of a queue but the `pending` newest; the number of the last one waited for."""
        partition = self.current
        number = max(queue.now - pending, partition.past.seen[queue])
        self.step(lambda: queue.done >= number, lambda: f"{queue.name} number {number}, of which {queue.done} are done")
        partition.past.seen[queue] = number
        return number

    def _choose(self) -> Partition:
        while True:
            heads: dict[Hashable, Event] = {}
            for event in self.events:
                heads.setdefault(event.queue, event)
            ready = [p for p in self.partitions if p.is_ready is None or p.is_ready()]
            choices: list[Partition | Event] = [*ready, *heads.values()]
            if not choices:
                raise Deadlock("nothing can go on:\n  " + "\n  ".join(map(str, self.partitions)))
            (chosen,) = self._random.choices(choices, [self._weights[choice.name] for choice in choices])
            if isinstance(chosen, Partition):
                return chosen
            self.events.remove(chosen)
            chosen.finish()

    def _hand_over(self) -> None:
        self._current = self._choose()
        self._current.baton.release()

    def _live(self, partition: Partition) -> None:
        """The life of a partition's thread."""
        partition.baton.acquire()
        if self._failure:
            return
        try:
            with torch.no_grad():
                partition.body()
            self._end(partition)
            if self.partitions:
                self._hand_over()
            else:
                self._finished.release()
        except _AbandonedError:
            return
        except BaseException as error:
            self._failure = error
            if partition in self.partitions:
                self.partitions.remove(partition)
            self._finished.release()

    def _end(self, partition: Partition) -> None:
        self.partitions.remove(partition)
        for queue in (partition.products, partition.stores):
            if partition.past.seen[queue] < queue.now:
                raise Hazard(f"{partition.name} ends without a wait for {queue.name} number {queue.now}")
