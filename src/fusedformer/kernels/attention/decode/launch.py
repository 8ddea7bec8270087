"""Launchers of the kernels for a cache of keys: ops attention_append and attention_decode for CUDA tensors, or CPU ones
interpreted.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedformer.kernels import replay
from fusedformer.kernels.attention import tuning
from fusedformer.kernels.attention.decode.inputs import MAX_SPLITS, Places
from fusedformer.kernels.attention.decode.kernel import (
    PlacePointers,
    Rotary,
    attention_append_kernel,
    attention_combine_kernel,
    attention_decode_kernel,
)
from fusedformer.kernels.attention.launch import LOG2_E, arch_of, environment, precision, run
from fusedformer.kernels.attention.scores import Scoring
from fusedformer.kernels.attention.tuning import Tile

SHORTEST_SPLIT = 256  # keys: below, the float32 row that a split writes is no longer small beside the keys it reads
PROGRAMS_PER_PROCESSOR = 4
INTERPRETED_PROCESSORS = 132

APPEND_TILE = Tile(8, 16, 4, 1)  # 8 pairs of key and head
COMBINE_TILE = Tile(16, 16, 4, 1)  # 16 splits at a time
INTERPRETED_TILE = Tile(16, 32, 1, 1)


@dataclass(frozen=True)
class Row:
    """Tiles of up to `rows` rows for head dimensions up to `head_dim`, as (BLOCK_N, stages): on chips with 160 KiB of
    shared memory or more for a program, and with 99 KiB.

    Nothing was timed yet: each compiles without spills for every GPU that takes it.
    """

    element_size: int
    head_dim: int
    rows: int
    num_warps: int
    large: tuple[int, int]
    small: tuple[int, int]


TABLE = (
    Row(2, 64, 32, 4, (128, 3), (128, 2)),
    Row(2, 64, 64, 8, (64, 3), (64, 2)),
    Row(2, 128, 32, 4, (64, 3), (32, 3)),
    Row(2, 128, 64, 8, (32, 3), (32, 3)),
    Row(2, 256, 32, 8, (64, 2), (32, 2)),
    Row(2, 512, 16, 8, (32, 2), (16, 2)),
    Row(4, 64, 16, 8, (32, 2), (32, 2)),
    Row(4, 128, 16, 4, (16, 2), (16, 2)),
    Row(4, 256, 16, 8, (16, 2), (16, 1)),
)
_LARGE = (80, 87, 90, 100, 103)


@replay.replayed(environment)
def attention_append(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, cos: Tensor | None, sin: Tensor | None,
    interleaved: bool, advance: bool, *where: Any,
) -> Tensor:  # fmt: skip
    """The op attention_append by its kernel."""
    places = Places(*where)
    places.check_values("attention_append", k_cache, len(q), k.shape[1])
    arch_of(q)  # raises where a kernel could not run
    rotary = Rotary()
    rotated = None
    if cos is not None and sin is not None:
        rotary = Rotary(cos, sin, cos.stride(), sin.stride(), len(cos), tl.constexpr(interleaved))
        rotated = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    block = APPEND_TILE.block_m
    key_tiles = triton.cdiv(k.shape[1] * k.shape[2], block)
    tiles = key_tiles + (0 if rotated is None else triton.cdiv(q.shape[1] * q.shape[2], block))
    values = {
        "ADVANCE": advance, "ROTARY_DIM": 0 if cos is None else 2 * cos.shape[1],
        "HEAD_DIM": k.shape[3], "HEAD_DIM_V": v.shape[3],
    }  # fmt: skip
    run(
        attention_append_kernel, len(q) * tiles, APPEND_TILE, values,
        q, k, v, k_cache, v_cache, rotated, _pointers(places), rotary,
        q.shape[2], k.shape[2], q.shape[1], k.shape[1], places.length, places.capacity(k_cache), k_cache.shape[1],
        key_tiles, tiles, q.stride(), k.stride(), v.stride(), k_cache.stride(), v_cache.stride(),
        None if rotated is None else rotated.stride(),
    )  # fmt: skip
    return q.new_empty(0) if rotated is None else rotated


@replay.replayed(environment)
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, slopes: Tensor | None, scale: float, softcap: float,
    left: int | None, right: int | None, num_splits: int, *where: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op attention_decode by its kernels."""
    places = Places(*where)
    places.check_values("attention_decode", k_cache, len(q))
    left, right = _window(left, right, q.shape[1], places.capacity(k_cache))
    problem = _Problem(q, k_cache, v_cache, places, _scoring(slopes, scale, softcap), left, right)
    tile, exact = problem.tile()
    splits, least = problem.splits(tile, num_splits)

    batch, seqlen_q, heads, _ = q.shape
    out = torch.empty((batch, seqlen_q, heads, v_cache.shape[3]), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, seqlen_q), dtype=torch.float32, device=q.device)
    if splits == 1:
        problem.launch(tile, out[None], lse[None], exact=exact)
    else:
        parts = torch.empty((splits, *out.shape), dtype=torch.float32, device=q.device)
        part_lse = torch.empty((splits, *lse.shape), dtype=torch.float32, device=q.device)
        problem.launch(tile, parts, part_lse, least, exact=exact)
        run(
            attention_combine_kernel, lse.numel(), COMBINE_TILE, problem.values,
            parts, part_lse, out, lse, heads, seqlen_q, splits, lse.numel(),
        )  # fmt: skip
    # Where the queries of a tile do not see the same keys, hidden NaN may have leaked: see tiles.py.
    if seqlen_q > 1 and not exact and (left is not None or right is not None):
        problem.launch(tuning.EXACT["fwd"], out[None], lse[None], exact=True, repair=True)
    return out, lse


@dataclass(frozen=True)
class _Problem:
    """One call of attention_decode: what all of its launches are told."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    places: Places
    scoring: Scoring
    left: int | None
    right: int | None

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.q.shape[2] // max(1, self.k_cache.shape[2])

    @property
    def rows(self) -> int:
        """Rows of each key head."""
        return self.group * self.q.shape[1]

    @property
    def values(self) -> dict[str, Any]:
        """The compile-time arguments that do not depend on the tile."""
        return {"PRECISION": precision(), "HEAD_DIM": self.q.shape[3], "HEAD_DIM_V": self.v_cache.shape[3]}

    def tile(self) -> tuple[Tile, bool]:
        """The tile, and whether its products are elementwise sums."""
        arch, head_dim = arch_of(self.q), max(self.q.shape[3], self.v_cache.shape[3])
        if tuning.is_elementwise("fwd", arch, self.q.dtype, head_dim):
            return tuning.EXACT["fwd"], True
        is_paged = self.places.block_table is not None
        return decode_tile(arch, self.q.dtype, head_dim, self.rows, is_paged), False

    def splits(self, tile: Tile, wanted: int) -> tuple[int, int]:
        """How many splits there are, and how many tiles of keys are the least in one; `wanted` of them, if not 0."""
        if wanted:
            return wanted, 1
        row_tiles, capacity = triton.cdiv(self.rows, tile.block_m), self.places.capacity(self.k_cache)
        count = split_count(self.k_cache.shape[2], row_tiles, capacity, _processors(self.q))
        return count, triton.cdiv(SHORTEST_SPLIT, tile.block_n)

    def launch(
        self, tile: Tile, out: Tensor, lse: Tensor, least: int = 1, *, exact: bool, repair: bool = False
    ) -> None:
        """Launch attention_decode_kernel over out (splits, B, Sq, H, Dv) and lse (splits, B, H, Sq)."""
        splits, batch, kv_heads = len(out), len(self.q), self.k_cache.shape[2]
        run(
            attention_decode_kernel, triton.cdiv(self.rows, tile.block_m) * splits * kv_heads * batch, tile,
            self.values | {"EXACT": exact, "REPAIR": repair},
            self.q, self.k_cache, self.v_cache, self.scoring, _pointers(self.places), out, lse,
            kv_heads, self.group, self.q.shape[1], self.places.length, self.places.capacity(self.k_cache),
            max(1, self.k_cache.shape[1]), splits, least, self.left, self.right,
            self.q.stride(), self.k_cache.stride(), self.v_cache.stride(), out.stride(), lse.stride(),
        )  # fmt: skip


def split_count(kv_heads: int, row_tiles: int, capacity: int, processors: int) -> int:
    """Into how many parts the keys of a sequence are divided at most.

    A batch of one must fill the GPU, and a larger batch, which would need fewer splits, must not change the bits of a
    sequence in it. So the batch size does not enter, and neither does any length: each sequence divides its own keys,
    which the GPU alone knows, by this number, but into no parts shorter than `SHORTEST_SPLIT`. The needless splits of a
    large batch cost a few percent: a row of float32 for `SHORTEST_SPLIT` keys or more.

    Args:
        kv_heads: key heads.
        row_tiles: tiles of queries, and of the query heads that share a key head.
        capacity: keys that the cache of a sequence holds.
        processors: multiprocessors of the GPU.
    """
    wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, max(1, kv_heads * row_tiles))
    return max(1, min(wanted, capacity // SHORTEST_SPLIT, MAX_SPLITS))


def decode_tile(arch: int | None, dtype: torch.dtype, head_dim: int, rows: int, is_paged: bool) -> Tile:
    """The tile of the decode kernel, `rows` being a sequence's queries times the query heads that share a key head."""
    if arch is None:
        return INTERPRETED_TILE
    fitting = [row for row in TABLE if row.element_size == dtype.itemsize and head_dim <= row.head_dim]
    fitting = [row for row in fitting if row.head_dim == fitting[0].head_dim]
    row = next((row for row in fitting if rows <= row.rows), fitting[-1])
    block_n, num_stages = row.large if arch in _LARGE else row.small
    if is_paged:  # the block table is in flight too, before the keys that it leads to
        num_stages = 2 * num_stages - 1
    block_m = min(row.rows, max(16, triton.next_power_of_2(rows)))
    return Tile(block_m, block_n, row.num_warps, num_stages)


def _window(left: int | None, right: int | None, seqlen_q: int, capacity: int) -> tuple[int | None, int | None]:
    """None for a side that hides nothing, whatever the lengths."""
    return (
        None if left is None or left >= capacity - 1 else left,
        None if right is None or right >= seqlen_q - 1 else right,
    )


def _scoring(slopes: Tensor | None, scale: float, softcap: float) -> Scoring:
    settings: dict[str, Any] = {}
    if slopes is not None:
        settings |= {"slopes_ptr": slopes, "slopes_strides": slopes.stride()}
    if softcap:
        settings["softcap_log2"] = softcap * LOG2_E
    return Scoring(scale, scale * LOG2_E, **settings, is_plain=tl.constexpr(not settings and scale > 0))


def _pointers(places: Places) -> PlacePointers:
    lengths, leftpad, rows = (
        None if x is None else x.contiguous() for x in (places.lengths, places.leftpad, places.rows)
    )
    table = places.block_table
    return PlacePointers(lengths, leftpad, rows, table, *(() if table is None else table.stride()))


def _processors(q: Tensor) -> int:
    return _processors_of(q.device) if q.is_cuda else INTERPRETED_PROCESSORS


@functools.cache
def _processors_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
