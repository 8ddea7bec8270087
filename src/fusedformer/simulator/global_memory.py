"""Global memory: pointers, TMA descriptors, and what a launch wrote where.

The programs of a launch run in any order and at once on a GPU, so an element is stored once at most, or only reduced
into, and not read after it was written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fusedformer.simulator.errors import Hazard, UnsupportedError
from fusedformer.simulator.values import Register, check_ranks

UNTOUCHED, STORED, REDUCED = 0, 1, 2
ADDRESSES = 2**64  # bytes
LARGEST_BOX = 256  # elements of a tile in a dimension, for TMA


class Written:
    """What a launch did to each element of its tensors, by the storage that they share."""

    def __init__(self) -> None:
        self._states: dict[int, torch.Tensor] = {}

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """UNTOUCHED, STORED or REDUCED for each element of `x`, as a view that further tensors share."""
        storage = x.untyped_storage()
        elements = -(-storage.nbytes() // x.itemsize)
        state = self._states.setdefault(storage.data_ptr(), torch.zeros(elements, dtype=torch.int8))
        return state.as_strided(x.shape, x.stride(), x.storage_offset())


@dataclass(frozen=True)
class Piece:
    """Some elements of a tensor: what is in them, and what the launch did to them."""

    data: torch.Tensor
    written: torch.Tensor

    def check_unwritten(self) -> None:
        """Before a read."""
        if self.written.any():
            raise Hazard("global memory is read that this launch wrote")

    def mark(self, state: int) -> None:
        """Before a write."""
        if ((self.written != UNTOUCHED) & ((self.written != state) | (state == STORED))).any():
            raise Hazard("global memory is written that this launch wrote before")
        self.written.fill_(state)


class Pointer:
    """Elements of a global tensor's memory: one offset, or a tensor of them."""

    def __init__(self, memory: Piece, offset: Any = 0) -> None:
        self._memory, self._offset = memory, offset  # memory: flat

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self._memory, self._offset + offset)

    __radd__ = __add__

    @property
    def dtype(self) -> torch.dtype:
        """The type of its elements."""
        return self._memory.data.dtype

    def select(self, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The offsets where the mask is true, and the mask in the shape of the offsets."""
        offset, mask = (x.data if isinstance(x, Register) else torch.as_tensor(x) for x in (self._offset, mask))
        if offset.dim() and mask.dim():
            check_ranks(offset, mask)
        offset, mask = torch.broadcast_tensors(offset, mask)
        offset = offset[mask].long()
        if ((offset < 0) | (offset >= len(self._memory.data))).any():
            raise Hazard("access out of the bounds of a global tensor")
        return offset, mask

    def load(self, mask: Any, other: Any) -> torch.Tensor:
        """The elements; `other` where the mask is false."""
        offset, mask = self.select(mask)
        Piece(self._memory.data, self._memory.written[offset]).check_unwritten()
        result = torch.full(mask.shape, 0 if other is None else other).to(self.dtype)
        result[mask] = self._memory.data[offset]
        return result

    def store(self, value: Any, mask: Any) -> None:
        """Write `value` where the mask is true."""
        offset, mask = self.select(mask)
        if len(offset.unique()) < offset.numel():
            raise Hazard("a store writes an element of a global tensor twice")
        self._mark(offset, STORED)
        data = value.data if isinstance(value, Register) else torch.as_tensor(value)
        self._memory.data[offset] = data.to(self.dtype).expand(mask.shape)[mask]

    def add(self, value: Any, mask: Any) -> torch.Tensor:
        """Add `value` atomically where the mask is true; what was there before."""
        offset, mask = self.select(mask)
        self._mark(offset, REDUCED)
        before = torch.zeros(mask.shape, dtype=self.dtype)
        before[mask] = self._memory.data[offset]
        data = value.data if isinstance(value, Register) else torch.as_tensor(value)
        self._memory.data.index_add_(0, offset, data.to(self.dtype).expand(mask.shape)[mask])
        return before

    def _mark(self, offset: torch.Tensor, state: int) -> None:
        piece = Piece(self._memory.data, self._memory.written[offset])
        piece.mark(state)
        self._memory.written[offset] = state


@dataclass(frozen=True)
class BlockType:
    """The type of a descriptor's tile."""

    shape: list[int]
    element_ty: torch.dtype

    @property
    def nbytes(self) -> int:
        """The bytes that a load of the tile brings, those of its zeros outside the tensor included."""
        return math.prod(self.shape) * self.element_ty.itemsize


class Descriptor:
    """A TMA descriptor. What a tile has outside the tensor is read as zero, and not written."""

    layout = None  # layouts mean nothing here

    def __init__(self, descriptor: Any, written: Written) -> None:
        if descriptor.padding != "zero":
            raise UnsupportedError(f"padding {descriptor.padding!r} of a descriptor")
        if max(descriptor.block_shape) > LARGEST_BOX:
            raise ValueError(
                f"a tile {list(descriptor.block_shape)} has more than {LARGEST_BOX} elements in a dimension"
            )
        base = descriptor.base.detach()
        self._start, self._strides = base.storage_offset(), list(descriptor.strides)
        elements = base.untyped_storage().nbytes() // base.itemsize
        flat = base.as_strided((elements,), (1,), 0)
        self._memory = Piece(flat, written.of(flat))
        self.shape, self.dtype = list(descriptor.shape), base.dtype
        self.block_type = BlockType(list(descriptor.block_shape), base.dtype)

    @property
    def block_shape(self) -> list[int]:
        """The sizes of a tile."""
        return self.block_type.shape

    @property
    def nbytes_per_cta(self) -> int:
        """The bytes of a tile: there is one CTA to a cluster."""
        return self.block_type.nbytes

    def clip(self, coordinates: Any, tile: torch.Tensor) -> tuple[Piece, torch.Tensor]:
        """The elements of the tensor that the tile at `coordinates` covers, and theirs of `tile`."""
        shape = self.block_shape
        if list(tile.shape) != shape or tile.dtype != self.dtype or len(coordinates) != len(shape):
            held = f"{tile.dtype} {list(tile.shape)} at {len(coordinates)} coordinates"
            raise TypeError(f"{held} for a descriptor of {self.dtype} {shape}")
        firsts, lengths, of_tile = [], [], []
        for first, length, size in zip(map(int, coordinates), shape, self.shape, strict=True):
            low, high = min(max(first, 0), size), min(max(first + length, 0), size)
            firsts.append(low)
            lengths.append(high - low)
            of_tile.append(slice(low - first, high - first) if low < high else slice(0, 0))
        return self._piece(firsts, lengths), tile[tuple(of_tile)]

    def _piece(self, firsts: list[int], lengths: list[int]) -> Piece:
        """`lengths` elements from `firsts` on. Addresses wrap at 64 bits, as TMA's do."""
        if 0 in lengths:
            return Piece(*(x.new_empty(lengths) for x in (self._memory.data, self._memory.written)))
        offset = sum(first * stride for first, stride in zip(firsts, self._strides, strict=True))
        start = (self._start + offset) % (ADDRESSES // self.dtype.itemsize)
        reach = sum((length - 1) * stride for length, stride in zip(lengths, self._strides, strict=True))
        if start + reach >= len(self._memory.data):
            raise Hazard("a tile lies outside of a global tensor's memory, but inside of its descriptor")
        data, written = (x.as_strided(lengths, self._strides, start) for x in (self._memory.data, self._memory.written))
        return Piece(data, written)
