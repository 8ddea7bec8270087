"""Where the keys of each sequence lie in a cache, and the checks of what says so."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.attention import inputs
from fusedformer.kernels.attention.inputs import Call

MAX_SPLITS = 128
# Values on a GPU are not looked at, which would wait for it, unless this is set.
CHECKS_VALUES = os.environ.get("FUSEDFORMER_CHECK", "0") not in ("", "0")
SCHEMA = "Tensor? lengths, SymInt length, Tensor? leftpad, Tensor? rows, Tensor? block_table"


@dataclass(frozen=True)
class Places:
    """The arguments of the ops that say where keys lie, in the order of `SCHEMA`; None: 0, or in order.

    B sequences; a cache is (pages, page size, Hkv, D). With `block_table` sequence b has its key j in row
    j % page size of page block_table[b, j // page size], otherwise in row j of page rows[b].
    """

    lengths: Tensor | None  # (B,) int32
    length: int  # sequence b has lengths[b] + length keys
    leftpad: Tensor | None  # (B,) int32: those before are hidden
    rows: Tensor | None  # (B,) int32
    block_table: Tensor | None  # (B, pages of a sequence) int32

    def capacity(self, cache: Tensor) -> int:
        """The most keys that a sequence can have."""
        return cache.shape[1] * (1 if self.block_table is None else self.block_table.shape[1])

    def check_values(self, function: str, cache: Tensor, batch: int, new: int = 0) -> None:
        """Raise ValueError for a length or a page that the cache has not, where the values are at hand."""
        if not (CHECKS_VALUES or cache.device.type == "cpu"):
            return
        capacity, pages = self.capacity(cache), cache.shape[0]
        ends = [length + self.length + new for length in self._list(self.lengths, batch)]
        for sequence, end in enumerate(ends):
            if not new <= end <= capacity:
                given = f"sequence {sequence} has {end - new} keys and {new} new ones"
                raise ValueError(f"{function}: {given}, the cache holds {capacity}")
        for sequence, row in enumerate(self._list(self.rows, 0)):
            if not 0 <= row < pages:
                raise ValueError(f"{function}: cache_batch_idx[{sequence}] is {row}, the cache has {pages} rows")
        if self.block_table is not None:
            for sequence, (end, table) in enumerate(zip(ends, self.block_table.tolist())):
                used = table[: -(-end // max(1, cache.shape[1]))]
                wrong = [page for page in used if not 0 <= page < pages]
                if wrong:
                    raise ValueError(f"{function}: block_table[{sequence}] has page {wrong[0]} of {pages} pages")

    @staticmethod
    def _list(vector: Tensor | None, missing: int) -> list[int]:
        return [0] * missing if vector is None else vector.tolist()


def check_cache(call: Call, q: Tensor, k_cache: Tensor, v_cache: Tensor, new: dict[str, Tensor | None]) -> None:
    """Raise ValueError unless q, caches (pages, page size, Hkv, D) and new keys and values fit together."""
    given = {"q": q, "k_cache": k_cache, "v_cache": v_cache, **{n: x for n, x in new.items() if x is not None}}
    for name, tensor in given.items():
        library.check_tensor(call.function, name, tensor)
        if tensor.dim() != 4:
            raise call.error(f"{name} has shape {tuple(tensor.shape)}, expected 4 dimensions")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values()):
        listed = ", ".join(name for name, tensor in given.items() if tensor.requires_grad)
        raise call.error(f"{listed} requires grad, but the cache is for inference only: use attention() for gradients")
    # Batches differ between q and a cache: what is compared here are tensors without any.
    inputs.check_qkv(call, q[:0], k_cache[:0], v_cache[:0])
    if k_cache.shape[0] != v_cache.shape[0]:
        raise call.error(f"k_cache has {k_cache.shape[0]} rows or pages, v_cache has {v_cache.shape[0]}")
    missing = [name for name, tensor in new.items() if tensor is None]
    if len(missing) == 1:
        raise call.error(f"{missing[0]} is None, expected both of k and v, or none")
    if not missing:
        _check_new(call, q, k_cache, v_cache, given["k"], given["v"])


def _check_new(call: Call, q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor) -> None:
    library.check_device(call.function, q=q, k=k, v=v)
    for name, tensor, cache in (("k", k, k_cache), ("v", v, v_cache)):
        expected = (q.shape[0], k.shape[1], *cache.shape[2:])
        if tuple(tensor.shape) != expected or tensor.dtype != cache.dtype:
            wrong = f"{name} is {library.short(tensor.dtype)} of shape {tuple(tensor.shape)}"
            raise call.error(f"{wrong}, expected {library.short(cache.dtype)} of shape {expected}")


def places(
    call: Call, q: Tensor, k_cache: Tensor, new: int | None, cache_seqlens: Any,
    cache_leftpad: Tensor | None, cache_batch_idx: Tensor | None, block_table: Tensor | None,
) -> Places:  # fmt: skip
    """The places of the keys in the cache, before any is appended; `new`: how many are, or None."""
    _check_indices(call, q, (len(q),), cache_leftpad=cache_leftpad, cache_batch_idx=cache_batch_idx)
    if block_table is not None:
        if cache_batch_idx is not None:
            raise call.error("cache_batch_idx is given with block_table, which says where each sequence is")
        rows = (len(q), block_table.shape[1] if isinstance(block_table, Tensor) and block_table.dim() == 2 else -1)
        _check_indices(call, q, rows, block_table=block_table)
    elif cache_batch_idx is None and k_cache.shape[0] < len(q):
        raise call.error(f"k_cache has {k_cache.shape[0]} rows, q has batch size {len(q)}")
    if isinstance(cache_seqlens, Tensor):
        _check_indices(call, q, (len(q),), cache_seqlens=cache_seqlens)
        return Places(cache_seqlens, 0, cache_leftpad, cache_batch_idx, block_table)
    capacity = Places(None, 0, None, None, block_table).capacity(k_cache)
    if cache_seqlens is None:
        if new is not None:
            raise call.error("cache_seqlens is None, but where k and v go in the cache begins there")
        cache_seqlens = capacity
    if not isinstance(cache_seqlens, int) or isinstance(cache_seqlens, bool):
        raise call.error(
            f"cache_seqlens is {cache_seqlens!r}, expected a number or an int32 tensor of shape ({len(q)},)"
        )
    if not 0 <= cache_seqlens <= capacity - (new or 0):
        raise call.error(f"cache_seqlens is {cache_seqlens} with {new or 0} new keys, the cache holds {capacity}")
    return Places(None, cache_seqlens, cache_leftpad, cache_batch_idx, block_table)


def _check_indices(call: Call, q: Tensor, shape: tuple[int, ...], **named: Tensor | None) -> None:
    """Raise ValueError unless all that are given are int32, of `shape` and on q's device."""
    for name, tensor in named.items():
        if tensor is None:
            continue
        library.check_tensor(call.function, name, tensor)
        library.check_device(call.function, q=q, **{name: tensor})
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
            expected = f"({', '.join('pages' if size == -1 else str(size) for size in shape)}{',' * (len(shape) == 1)})"
            wrong = f"{library.short(tensor.dtype)} of shape {tuple(tensor.shape)}"
            raise call.error(f"{name} is {wrong}, expected int32 of shape {expected}")


def check_rotary(call: Call, q: Tensor, is_appending: bool, cos: Tensor | None, sin: Tensor | None) -> None:
    """Raise ValueError unless both or none are there, (positions, R / 2) for R up to D, and keys to rotate."""
    if cos is None and sin is None:
        return
    if cos is None or sin is None:
        missing = "rotary_cos" if cos is None else "rotary_sin"
        raise call.error(f"{missing} is None, expected both of rotary_cos and rotary_sin, or none")
    if not is_appending:
        raise call.error("rotary_cos and rotary_sin are given without k and v, expected all of them")
    for name, tensor in (("rotary_cos", cos), ("rotary_sin", sin)):
        library.check_tensor(call.function, name, tensor)
        library.check_device(call.function, q=q, **{name: tensor})
        fits = tensor.dim() == 2 and 1 <= tensor.shape[1] <= q.shape[3] // 2 and tensor.shape == cos.shape
        if not fits or not tensor.is_floating_point():
            wrong = f"{library.short(tensor.dtype)} of shape {tuple(tensor.shape)}"
            expected = f"floating point of shape (positions, 1 to {q.shape[3] // 2}), the same for both"
            raise call.error(f"{name} is {wrong}, expected {expected}")


def check_splits(call: Call, num_splits: Any) -> int:
    """`num_splits` if it is a number of splits, or 0."""
    if not isinstance(num_splits, int) or isinstance(num_splits, bool) or not 0 <= num_splits <= MAX_SPLITS:
        raise call.error(f"num_splits is {num_splits!r}, expected 0 (chosen from the shape) to {MAX_SPLITS}")
    return num_splits
