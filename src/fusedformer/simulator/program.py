"""One program of a launch: its shared memory, its barriers, and the partitions that run on it."""

from __future__ import annotations

import linecache
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from fusedformer.simulator.barriers import MBarrier, NamedBarrier
from fusedformer.simulator.clocks import Past
from fusedformer.simulator.errors import Hazard
from fusedformer.simulator.scheduler import Partition, Scheduler
from fusedformer.simulator.shared_memory import Allocation, SharedView

SHARED_BYTES = 232_448  # of a program on sm_90
REGISTERS = 65_536  # of an SM
WARP = 32
HERE = str(Path(__file__).parent)


def assigned_name() -> str:
    """What the kernel calls the value it is computing: `ring.full` for `full = ...` in a call for `ring = ...`."""
    names: list[str] = []
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(HERE):
        frame = frame.f_back
    while not frame.f_code.co_filename.startswith(HERE):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        match = re.match(r"\s*(\w+)\s*=[^=]", line)
        names += [match[1]] if match else []
        if not frame.f_back:
            break
        frame = frame.f_back
    return ".".join(reversed(names)) or "shared memory"


class Program:
    """The state of one program, which the operations of operations.py change."""

    def __init__(
        self, pid: Sequence[int], grid: Sequence[int], random: Random, num_warps: int, has_clocks: bool
    ) -> None:
        self.pid, self.grid, self.num_warps, self.has_clocks = pid, grid, num_warps, has_clocks
        self.scheduler = Scheduler(random)
        self.workers = 0  # partitions beside the first
        self._allocations: list[Allocation] = []
        self._named_barriers: dict[int, NamedBarrier] = {}

    @property
    def partition(self) -> Partition:
        """The one that runs."""
        return self.scheduler.current

    def run(self, body: Callable[[], None]) -> None:
        """Execute it to its end."""
        main = self.scheduler.add("main", self.num_warps, body, Past())
        self.scheduler.run()
        if self.has_clocks:
            self._check_end(main)

    def _check_end(self, main: Partition) -> None:
        for allocation in self._allocations:
            for access in allocation.accesses():
                if access.is_write and access.time > main.past.seen[access.timeline]:
                    raise Hazard(f"the program ends with a {access} to {allocation.name} not waited for")

    def allocate(self, dtype: torch.dtype, shape: Sequence[int]) -> SharedView:
        """A piece of shared memory, which lives as long as the program."""
        allocation = Allocation(assigned_name(), dtype, math.prod(shape))
        self._allocations.append(allocation)
        used = sum(piece.nbytes for piece in self._allocations)
        if used > SHARED_BYTES:
            raise Hazard(f"{used} bytes of shared memory, of {SHARED_BYTES}")
        return SharedView(self, allocation, allocation.data.view(tuple(shape)), allocation.name)

    def barrier_at(self, view: SharedView, *, is_asynchronous: bool = False) -> MBarrier:
        """The mbarrier that `view` holds, for the partition that runs or a TMA load of it."""
        barrier = view.allocation.barriers.get(view.offset)
        if barrier is None or view.data.numel() != 1:
            raise Hazard(f"{view.name} is not an mbarrier that was initialised")
        if self.has_clocks:
            self._check_initialised(barrier, is_asynchronous)
        return barrier

    def _check_initialised(self, barrier: MBarrier, is_asynchronous: bool) -> None:
        past = self.partition.past
        timeline, time = barrier.initialised
        if time > past.seen[timeline]:
            raise Hazard(f"{barrier.name} is used without order after its initialisation")
        if is_asynchronous and time > past.fenced[timeline]:
            raise Hazard(f"{barrier.name} is used by a TMA load without a fence_async_shared after its initialisation")

    def named_barrier(self, number: int) -> NamedBarrier:
        """A barrier of bar.sync."""
        if not 2 + self.workers <= number < 16:
            raise Hazard(f"named barrier {number}: Triton uses those below {2 + self.workers}, and there are 16")
        return self._named_barriers.setdefault(number, NamedBarrier(number))

    def specialize(
        self, functions: Sequence[tuple[Any, Sequence[Any]]], warps: Sequence[int], registers: Sequence[int] | None
    ) -> Any:
        """Run the first of the functions here and each other in a partition of its own, until all have ended."""
        (default, arguments), *workers = functions
        self._check_resources(len(workers), warps, registers)
        main, self.workers = self.partition, len(workers)
        partitions = []
        names = unique_names([default.__name__, *(function.__name__ for function, _ in workers)])
        for name, (function, values), count in zip(names[1:], workers, warps, strict=True):
            body = _call(function, values)
            partitions.append(self.scheduler.add(name, count, body, main.past))
        main.rename(names[0])
        result = default(*arguments)
        self.scheduler.step(
            lambda: not any(partition in self.scheduler.partitions for partition in partitions),
            lambda: "the other partitions to end",
        )
        for partition in partitions:
            main.past.join(partition.past)
        return result

    def _check_resources(self, workers: int, warps: Sequence[int], registers: Sequence[int] | None) -> None:
        if self.workers:
            raise Hazard("warp_specialize in a program that is specialised")
        if len(warps) != workers or (registers is not None and len(registers) != workers):
            raise ValueError(f"{workers} worker partitions with warps {warps} and registers {registers}")
        if registers is None:
            return
        if any(count % 8 or not 24 <= count <= 256 for count in registers):
            raise ValueError(
                f"registers {list(registers)} of partitions: setmaxnreg takes multiples of 8 from 24 to 256"
            )
        used = sum(WARP * count * of_thread for count, of_thread in zip(warps, registers, strict=True))
        if used + WARP * self.num_warps * 24 > REGISTERS:
            raise ValueError(f"{used} registers of worker partitions leave none of {REGISTERS} to the first")


def _call(function: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], None]:
    return lambda: function(*arguments)


def unique_names(names: Sequence[str]) -> list[str]:
    """Each name, with a number where it is not alone."""
    return [
        f"{name}#{names[:place].count(name)}" if names.count(name) > 1 else name for place, name in enumerate(names)
    ]
