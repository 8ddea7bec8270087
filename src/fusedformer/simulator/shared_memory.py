"""Shared memory: what it holds, and for each set of elements that a kernel names, who touched it last.

An access conflicts with an earlier one that touched an element of its own and of which at least one wrote. It must
have that one in its past (clocks.py), however the two happened to be scheduled. Accesses are kept per set of elements
and timeline, the last of each: an earlier one came before it, or would have been reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusedformer.simulator.clocks import Past, Timeline
from fusedformer.simulator.errors import Hazard, Refusing, UnsupportedError
from fusedformer.simulator.values import Register

if TYPE_CHECKING:
    from fusedformer.simulator.barriers import MBarrier
    from fusedformer.simulator.program import Program

NEVER = 1 << 62  # the moment at which a TMA load writes, while it is under way


@dataclass
class Access:
    """A read or write, at a moment of a timeline."""

    timeline: Timeline
    time: int
    is_write: bool

    def __str__(self) -> str:
        return f"{'write' if self.is_write else 'read'} ({self.timeline.name})"


class Region:
    """A set of elements of an allocation, and the last accesses of exactly this set."""

    def __init__(self, elements: torch.Tensor) -> None:
        self.elements = elements  # [size] of bool
        self.overlapping: list[Region] = [self]
        self.last: dict[tuple[Timeline, bool], Access] = {}

    def check(self, name: str, access: Access, past: Past, is_asynchronous: bool) -> None:
        """Compare `access`, which has `past` behind it, with the conflicting ones before it."""
        for region in self.overlapping:
            for earlier in region.last.values():
                if not (earlier.is_write or access.is_write):
                    continue
                if earlier.time > past.seen[earlier.timeline]:
                    raise Hazard(f"{name}: {access} without order after a {earlier}")
                if is_asynchronous and earlier.is_write and earlier.timeline.is_generic:
                    if earlier.time > past.fenced[earlier.timeline]:
                        raise Hazard(f"{name}: asynchronous {access} without a fence_async_shared after a {earlier}")


class Allocation:
    """A piece of shared memory; NaN (integers: -1) until something is written."""

    def __init__(self, name: str, dtype: torch.dtype, size: int) -> None:
        self.name = name
        self.poison = math.nan if dtype.is_floating_point else -1
        self.data = torch.full((size,), self.poison).to(dtype)
        self.barriers: dict[int, MBarrier] = {}  # by element
        self._regions: dict[tuple[Any, ...], Region] = {}

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.data.nbytes

    def accesses(self) -> list[Access]:
        """The last accesses of every region."""
        return [access for region in self._regions.values() for access in region.last.values()]

    def region_of(self, view: torch.Tensor) -> Region:
        """The elements that a view of the data has."""
        key = (view.storage_offset(), view.shape, view.stride())
        region = self._regions.get(key)
        if region is None:
            elements = torch.zeros(len(self.data), dtype=torch.bool)
            elements.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
            region = self._regions[key] = Region(elements)
            for other in list(self._regions.values())[:-1]:
                if (other.elements & elements).any():
                    other.overlapping.append(region)
                    region.overlapping.append(other)
        return region


class SharedView(Refusing):
    """What gl.allocate_shared_memory returns, and views of it. `data` shares the allocation's memory."""

    def __init__(self, program: Program, allocation: Allocation, data: torch.Tensor, name: str) -> None:
        self.program, self.allocation, self.data, self.name = program, allocation, data, name

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""
        return self.data.dtype

    @property
    def shape(self) -> list[int]:
        """Its sizes."""
        return list(self.data.shape)

    @property
    def offset(self) -> int:
        """The place of its first element in the allocation."""
        return int(self.data.storage_offset())

    @property
    def layout(self) -> None:
        """Layouts mean nothing here."""
        return None

    def index(self, i: int) -> SharedView:
        """Element `i` of the first dimension."""
        if not 0 <= i < self.data.shape[0]:
            raise Hazard(f"index {i} of {self.name}, which has {self.data.shape[0]}")
        return self._view(self.data[int(i)], f"[{i}]")

    def slice(self, start: int, length: int, dim: int = 0) -> SharedView:
        """`length` places of a dimension from `start` on."""
        if not 0 <= start <= start + length <= self.data.shape[dim]:
            raise Hazard(f"slice {start}:{start + length} of {self.name}, which has {self.data.shape[dim]}")
        return self._view(self.data.narrow(dim, int(start), int(length)), f"[{start}:{start + length}]")

    def permute(self, order: Sequence[int]) -> SharedView:
        """The dimensions in another order."""
        return self._view(self.data.permute(tuple(order)))

    def reshape(self, shape: Sequence[int]) -> SharedView:
        """The same elements in other dimensions."""
        try:
            return self._view(self.data.view(tuple(shape)))
        except RuntimeError as error:
            raise UnsupportedError(f"{self.name}: reshape of {self.shape} to {list(shape)}") from error

    def _view(self, data: torch.Tensor, suffix: str = "") -> SharedView:
        return SharedView(self.program, self.allocation, data, self.name + suffix)

    def load(self, layout: object = None) -> Register:
        """Read it into registers."""
        partition = self.program.scheduler.step()
        self.touch(partition.timeline, partition.timeline.now, partition.past, is_write=False)
        return Register(self.data.clone())

    def store(self, value: Register) -> None:
        """Write registers to it."""
        partition = self.program.scheduler.step()
        if value.shape != self.shape or value.dtype != self.dtype:
            raise TypeError(f"{self.name} holds {self.dtype} {self.shape}, stored was {value.dtype} {value.shape}")
        self.touch(partition.timeline, partition.timeline.now, partition.past, is_write=True)
        self.data.copy_(value.data)

    def touch(
        self, timeline: Timeline, time: int, past: Past, *, is_write: bool, is_asynchronous: bool = False
    ) -> Access:
        """Note an access at a moment of a timeline, and check that those it conflicts with came before it."""
        access = Access(timeline, time, is_write)
        region = self.allocation.region_of(self.data)
        if self.program.has_clocks:
            region.check(self.name, access, past, is_asynchronous)
        region.last[timeline, is_write] = access
        return access
