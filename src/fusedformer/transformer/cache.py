"""What decoding token by token keeps: the keys and values that attention has seen so far.

Dimensions: B batch, S new positions, T positions attended to, K key and value heads, D head width.
Memory: 2 B T K D elements for each layer. A growing cache holds at most twice what it needs and copies each position
less than twice on the way there; a static one has its final size, and its address, from the first token on.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class KeyValueCache:
    """The keys and values that one attention layer has seen so far, in buffers that double when they are full."""

    keys: Tensor  # (B, capacity, K, D), the first `length` positions filled
    values: Tensor  # likewise

    def __init__(self, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self.length = 0
        self.capacity = 0

    def append(self, k_BSKD: Tensor, v_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of S further positions; return those of all T positions so far."""
        start, end = self.length, self.length + k_BSKD.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"a cache of {self.max_seq_len} positions cannot hold {end}")
        if start == 0:
            self.keys, self.values = k_BSKD[:, :0], v_BSKD[:, :0]
        check_new(self.keys, k_BSKD, v_BSKD)
        if end > self.capacity:
            self.capacity = min(max(end, 2 * self.capacity), self.max_seq_len)
            self.keys = enlarged(self.keys[:, :start], self.capacity)
            self.values = enlarged(self.values[:, :start], self.capacity)
        self.keys[:, start:end] = k_BSKD
        self.values[:, start:end] = v_BSKD
        self.length = end
        return self.keys[:, :end], self.values[:, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, int64 (B',), in their order; a row may be named more than once."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def n_keys(self, n_new: int) -> int:
        """T: how many keys `append` returns for so many new positions."""
        return self.length + n_new

    def new_places(self, n_new: int) -> slice:
        """Which of these T so many new positions are."""
        return slice(self.length, None)

    def visible(self, mask: Tensor | None, n_new: int) -> Tensor | None:
        """What so many new positions see beside attention's own causal mask: what a mask over T, if any, leaves."""
        return mask


class StaticKeyValueCache:
    """The same in buffers of a fixed size and address: every step runs the same kernels on the same memory.

    So a step can be compiled once (`torch.compile`) or recorded as a CUDA graph. Attention is to the whole buffer, in
    which a mask hides what is not filled; `length` is on the device, where nothing checks that the positions suffice.
    """

    keys: Tensor  # (B, max_seq_len, K, D)
    values: Tensor  # likewise
    length: Tensor  # int64, ()

    def __init__(self, max_seq_len: int, device: torch.device) -> None:
        self.max_seq_len = max_seq_len
        self.length = torch.zeros((), dtype=torch.int64, device=device)
        self.is_empty = True

    def append(self, k_BSKD: Tensor, v_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of S further positions; return the whole buffers."""
        if self.is_empty:
            # Memory as it is found may hold NaN, and what attention does so that a hidden one does not leak takes time.
            self.keys = enlarged(k_BSKD[:, :0], self.max_seq_len).zero_()
            self.values = enlarged(v_BSKD[:, :0], self.max_seq_len).zero_()
            self.is_empty = False
        check_new(self.keys, k_BSKD, v_BSKD)
        places_S = self.new_places(k_BSKD.shape[1])
        self.keys.index_copy_(1, places_S, k_BSKD)
        self.values.index_copy_(1, places_S, v_BSKD)
        self.length += k_BSKD.shape[1]
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep these rows, int64 (B',), in their order; in place if there are as many as before."""
        for name in ("keys", "values"):
            buffer: Tensor = getattr(self, name)
            chosen = buffer.index_select(0, rows)
            setattr(self, name, buffer.copy_(chosen) if len(chosen) == len(buffer) else chosen)

    def n_keys(self, n_new: int) -> int:
        """T: how many keys `append` returns for so many new positions."""
        return self.max_seq_len

    def new_places(self, n_new: int) -> Tensor:
        """Which of these T so many new positions are: int64, (S,)."""
        return self.length + torch.arange(n_new, device=self.length.device)

    def visible(self, mask: Tensor | None, n_new: int) -> Tensor:
        """What so many new positions see, (B or 1, S, T): each what is up to itself, and left by a mask over T."""
        seen_ST = torch.arange(self.max_seq_len, device=self.length.device) <= self.new_places(n_new).unsqueeze(1)
        if mask is None:
            return seen_ST.unsqueeze(0)
        return seen_ST & (mask.unsqueeze(1) if mask.dim() == 2 else mask)


Cache = KeyValueCache | StaticKeyValueCache


class Memory(NamedTuple):
    """What one layer's cross-attention reads: the keys, values and padding mask of the encoder's output."""

    keys: Tensor  # (B, T, K, D)
    values: Tensor  # (B, T, K, D)
    mask: Tensor | None  # bool, (B, 1, 1, T)

    def repeat(self, times: int) -> "Memory":
        """Each row so many times over, one after the other."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, dim=0)
        return Memory(self.keys.repeat_interleave(times, dim=0), self.values.repeat_interleave(times, dim=0), mask)


@dataclass
class DecodingState:
    """What a model keeps of B sequences from one step of decoding to the next."""

    caches: list[Cache]  # of self-attention, one for each layer
    padding_mask: Tensor | None = (
        None  # bool, (B, T), True for a real token, up to the last position that will be decoded
    )
    memories: list[Memory] | None = None  # of cross-attention: computed once, from the source

    def attention_mask(self, n_new: int) -> Tensor | None:
        """The padding mask of the positions that so many new ones attend to, (B, T)."""
        return None if self.padding_mask is None else self.padding_mask[:, : self.caches[0].n_keys(n_new)]

    def repeat(self, times: int) -> None:
        """Continue each sequence in so many ways: its rows stand one after the other."""
        keys = self.caches[0].keys
        self.reorder(torch.arange(len(keys), device=keys.device).repeat_interleave(times))
        self.padding_mask = None if self.padding_mask is None else self.padding_mask.repeat_interleave(times, dim=0)
        self.memories = None if self.memories is None else [memory.repeat(times) for memory in self.memories]

    def reorder(self, rows: Tensor) -> None:
        """Go on from these rows, int64, each of which continues the same prompt or source as the one it replaces."""
        for cache in self.caches:
            cache.select(rows)


def enlarged(old_BTKD: Tensor, capacity: int) -> Tensor:
    """A buffer of that many positions which starts with these."""
    B, T, K, D = old_BTKD.shape
    new = old_BTKD.new_empty(B, capacity, K, D)
    new[:, :T] = old_BTKD
    return new


def check_new(buffer: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> None:
    """Raise ValueError unless these fit the rows, heads and head width of a cache: nothing is broadcast."""
    B, _, K, D = buffer.shape
    for name, new in (("keys", k_BSKD), ("values", v_BSKD)):
        if (new.shape[0], *new.shape[2:]) != (B, K, D):
            raise ValueError(f"a cache of (B, K, D) = {(B, K, D)} cannot hold {name} of shape {tuple(new.shape)}")
