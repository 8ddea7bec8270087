"""Attention against a cache of keys on the device: append to it, attend to it in splits, combine the splits.

Legend: tiles.py, and Sn new keys, R rotary dimension, splits: into how many parts the keys are divided, for
programs enough to read them at full speed. A row is a pair of a query and one of the `group` query heads that share a
key head: row r is query r // group and head r % group, so that a tile of BLOCK_M rows reads each key once for all of
them. A cache is (pages, page size, Hkv, D); without a block table each sequence has one page to itself.
Memory: each key and value that a query sees, once for every tile of rows; of each split one row of float32 for each
row of out, written and read. FLOPs: 2 B H Sq Sk (D + Dv), far below what the memory allows.
Source: Dao et al., "Flash-Decoding for long-context inference", 2023; Kwon et al., "Efficient Memory Management for
Large Language Model Serving with PagedAttention", 2023; rotary: Su et al., "RoFormer", 2021.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fusedformer.kernels.attention.fwd_kernel import LOWEST
from fusedformer.kernels.attention.scores import factor, score, sees
from fusedformer.kernels.attention.tiles import INF, LN_2, add_weighted, all_finite, scores_of
from fusedformer.kernels.triton_compat import device_function, narrow


class PlacePointers(NamedTuple):
    """Where each sequence has its keys; what is None is 0, or in order."""

    lengths_ptr: Any = None  # (B,) int32: keys in the cache
    leftpad_ptr: Any = None  # (B,) int32: keys at its beginning that nobody sees
    rows_ptr: Any = None  # (B,) int32: the page of each sequence
    table_ptr: Any = None  # (B, pages of a sequence) int32: its pages, in order
    table_stride: Any = None
    page_stride: Any = None


class Rotary(NamedTuple):
    """The angles of the rotary embedding, of each position and pair of dimensions; None without it."""

    cos_ptr: Any = None  # (positions, R / 2), any float dtype
    sin_ptr: Any = None
    cos_strides: Any = None
    sin_strides: Any = None
    positions: Any = None
    # Last, for the reason that `Scoring` gives.
    interleaved: Any = tl.constexpr(True)  # pairs are (0, 1), (2, 3), ..., not (0, R / 2), (1, R / 2 + 1), ...


@device_function
def _value_of(ptr, batch, default):
    """An element of an int32 vector that may be absent."""
    if ptr is None:
        return default
    else:
        return tl.load(ptr + batch)


@device_function
def _key_places(places, batch, j, inside, page_size):
    """Of the keys `j` of a sequence: the page of each and its row there, (n,) or scalar int64."""
    if places.table_ptr is None:
        return _value_of(places.rows_ptr, batch, batch).to(tl.int64), j.to(tl.int64)
    else:
        entries = (j // page_size).to(tl.int64) * places.page_stride + batch * places.table_stride
        pages = tl.load(places.table_ptr + entries, mask=inside, other=0)
        return pages.to(tl.int64), (j % page_size).to(tl.int64)


@device_function
def _tile_ptrs(ptr, offsets, stride, BLOCK_D: tl.constexpr):
    """(m, BLOCK_D) pointers to the elements of rows that begin at `offsets`."""
    return ptr + (offsets[:, None] + tl.arange(0, BLOCK_D).to(tl.int64)[None, :] * stride)


@device_function
def _tile_mask(inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(m, 1) or (m, BLOCK_D): rows `inside`, and of them what exists."""
    if HEAD_DIM < BLOCK_D:
        return inside[:, None] & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
    else:
        return inside[:, None]


@device_function
def _load_tile(ptr, offsets, stride, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(m, BLOCK_D), zeros where there is nothing inside."""
    mask = _tile_mask(inside, HEAD_DIM, BLOCK_D)
    return tl.load(_tile_ptrs(ptr, offsets, stride, BLOCK_D), mask=mask, other=0.0)


@device_function
def _store_tile(ptr, offsets, stride, inside, tile, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Round a tile to the tensor's dtype and write what is inside."""
    mask = _tile_mask(inside, HEAD_DIM, BLOCK_D)
    tl.store(_tile_ptrs(ptr, offsets, stride, BLOCK_D), narrow(tile, ptr.dtype.element_ty), mask=mask)


@device_function
def _angles(ptr, strides, position, pair, inside):
    """cos or sin; NaN for a position past the table, which would otherwise be a wrong angle without a word."""
    offsets = position.to(tl.int64)[:, None] * strides[0] + pair.to(tl.int64)[None, :] * strides[1]
    return tl.load(ptr + offsets, mask=inside, other=float("nan")).to(tl.float32)


@device_function
def _load_rotated(
    ptr, offsets, stride, inside, position, rotary,
    ROTARY_DIM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows at `position`, (m, BLOCK_D) float32; of each pair of dimensions (x, y): x cos - y sin, x sin + y cos."""
    x = _load_tile(ptr, offsets, stride, inside, HEAD_DIM, BLOCK_D).to(tl.float32)
    if rotary.cos_ptr is None:
        return x
    else:
        dims = tl.arange(0, BLOCK_D)
        half: tl.constexpr = ROTARY_DIM // 2
        pair = dims // 2 if rotary.interleaved else dims % half
        is_first = dims % 2 == 0 if rotary.interleaved else dims < half
        step = tl.where(is_first, 1, -1) * (1 if rotary.interleaved else half)
        turns = inside[:, None] & (dims < ROTARY_DIM)[None, :]
        known = turns & (position < rotary.positions)[:, None]
        cos = _angles(rotary.cos_ptr, rotary.cos_strides, position, pair, known)
        sin = _angles(rotary.sin_ptr, rotary.sin_strides, position, pair, known)
        partner_offsets = offsets[:, None] + (dims + step).to(tl.int64)[None, :] * stride
        partner = tl.load(ptr + partner_offsets, mask=turns, other=0.0).to(tl.float32)
        return tl.where(turns, x * cos + partner * tl.where(is_first, -1.0, 1.0)[None, :] * sin, x)


@triton.jit(
    do_not_specialize=[
        "heads", "kv_heads", "seqlen_q", "seqlen_new", "length", "capacity", "page_size", "key_tiles", "tiles"
    ]
)  # fmt: skip
def attention_append_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sn, Hkv, D)
    v_ptr,  # (B, Sn, Hkv, Dv)
    k_cache_ptr,  # (pages, page size, Hkv, D)
    v_cache_ptr,  # (pages, page size, Hkv, Dv)
    rotated_ptr,  # (B, Sq, H, D), or None without rotary
    places,  # PlacePointers
    rotary,  # Rotary
    heads,
    kv_heads,
    seqlen_q,
    seqlen_new,
    length,  # keys in the cache of each sequence, beside those that `places` counts
    capacity,
    page_size,
    key_tiles,  # tiles of new keys of a sequence
    tiles,  # these, and those of its queries
    q_strides,
    k_strides,
    v_strides,
    k_cache_strides,
    v_cache_strides,
    rotated_strides,
    ADVANCE: tl.constexpr,  # query i is at position length + i, not all of them at position length
    ROTARY_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program writes BLOCK_M pairs of a new key and its head to the cache, or of a query and its head."""
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    length += _value_of(places.lengths_ptr, batch, 0)
    if tile < key_tiles:
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        new, head = rows // kv_heads, (rows % kv_heads).to(tl.int64)
        position = length + new
        inside = (new < seqlen_new) & (position >= 0) & (position < capacity)
        page, row = _key_places(places, batch, position, inside, page_size)
        offsets = batch * k_strides[0] + new.to(tl.int64) * k_strides[1] + head * k_strides[2]
        k = _load_rotated(k_ptr, offsets, k_strides[3], inside, position, rotary, ROTARY_DIM, HEAD_DIM, BLOCK_D)
        offsets = page * k_cache_strides[0] + row * k_cache_strides[1] + head * k_cache_strides[2]
        _store_tile(k_cache_ptr, offsets, k_cache_strides[3], inside, k, HEAD_DIM, BLOCK_D)
        offsets = batch * v_strides[0] + new.to(tl.int64) * v_strides[1] + head * v_strides[2]
        v = _load_tile(v_ptr, offsets, v_strides[3], inside, HEAD_DIM_V, BLOCK_DV).to(tl.float32)
        offsets = page * v_cache_strides[0] + row * v_cache_strides[1] + head * v_cache_strides[2]
        _store_tile(v_cache_ptr, offsets, v_cache_strides[3], inside, v, HEAD_DIM_V, BLOCK_DV)
    elif rotated_ptr is not None:
        rows = (tile - key_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
        i, head = rows // heads, (rows % heads).to(tl.int64)
        inside = i < seqlen_q
        position = length + (i if ADVANCE else i * 0)
        offsets = batch * q_strides[0] + i.to(tl.int64) * q_strides[1] + head * q_strides[2]
        q = _load_rotated(q_ptr, offsets, q_strides[3], inside, position, rotary, ROTARY_DIM, HEAD_DIM, BLOCK_D)
        offsets = batch * rotated_strides[0] + i.to(tl.int64) * rotated_strides[1] + head * rotated_strides[2]
        _store_tile(rotated_ptr, offsets, rotated_strides[3], inside, q, HEAD_DIM, BLOCK_D)


@device_function
def _split_keys(first, last, split, splits, least, BLOCK_N: tl.constexpr):
    """Where split `split` of the keys `first` to `last` begins and ends: whole tiles, `least` of them or more.

    Only what a sequence's own keys and the shapes of one sequence decide may decide this, nothing else of its batch.
    """
    tiles = tl.cdiv(tl.maximum(last - first, 0), BLOCK_N)
    length = tl.maximum(tl.cdiv(tiles, splits), least) * BLOCK_N
    begin = tl.minimum(first + split * length, last)
    return begin, tl.minimum(begin + length, last)


@triton.jit(
    do_not_specialize=[
        "kv_heads", "group", "seqlen_q", "length", "capacity", "page_size", "splits", "least", "left", "right"
    ]
)  # fmt: skip
def attention_decode_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (pages, page size, Hkv, D)
    v_ptr,  # (pages, page size, Hkv, Dv)
    scoring,  # Scoring
    places,  # PlacePointers
    out_ptr,  # (splits, B, Sq, H, Dv)
    lse_ptr,  # (splits, B, H, Sq) float32
    kv_heads,
    group,
    seqlen_q,
    length,  # keys of each sequence, beside those that `places` counts
    capacity,
    page_size,
    splits,
    least,  # tiles of keys that a split has at least
    left,  # or None
    right,  # or None
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    lse_strides,
    EXACT: tl.constexpr,  # sums that leave hidden products out instead of matrix products
    REPAIR: tl.constexpr,  # only of tiles that are not finite
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes BLOCK_M rows of one key head over one split of the keys."""
    tiles = tl.cdiv(group * seqlen_q, BLOCK_M)
    start_m = tl.program_id(0) % tiles * BLOCK_M
    others = tl.program_id(0) // tiles
    split = others % splits
    kv_head = (others // splits % kv_heads).to(tl.int64)
    batch = (others // splits // kv_heads).to(tl.int64)

    rows = start_m + tl.arange(0, BLOCK_M)
    i, head = rows // group, kv_head * group + (rows % group).to(tl.int64)
    real = i < seqlen_q
    out_ptr += split.to(tl.int64) * out_strides[0] + batch * out_strides[1]
    out_offsets = i.to(tl.int64) * out_strides[2] + head * out_strides[3]
    if REPAIR:
        if all_finite(_load_tile(out_ptr, out_offsets, out_strides[4], real, HEAD_DIM_V, BLOCK_DV)):
            return
    q_offsets = batch * q_strides[0] + i.to(tl.int64) * q_strides[1] + head * q_strides[2]
    q = _load_tile(q_ptr, q_offsets, q_strides[3], real, HEAD_DIM, BLOCK_D)

    seqlen_k = tl.minimum(length + _value_of(places.lengths_ptr, batch, 0), capacity)
    diagonal = seqlen_k - seqlen_q
    first, last = tl.maximum(_value_of(places.leftpad_ptr, batch, 0), 0), seqlen_k
    if left is not None:
        first = tl.maximum(first, start_m // group + diagonal - left)
    if right is not None:
        last = tl.minimum(last, (start_m + BLOCK_M - 1) // group + 1 + diagonal + right)
    begin, end = _split_keys(first, last, split, splits, least, BLOCK_N)

    k_ptr += kv_head * k_strides[2]
    v_ptr += kv_head * v_strides[2]
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # Not -inf, for -inf - -inf is NaN: a row that sees no key keeps this peak, and a total of 0.
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    for start_n in tl.range(begin, end, BLOCK_N):
        j = start_n + tl.arange(0, BLOCK_N)
        page, row = _key_places(places, batch, j, j < end, page_size)
        k_offsets = page * k_strides[0] + row * k_strides[1]
        k = _load_tile(k_ptr, k_offsets, k_strides[3], j < end, HEAD_DIM, BLOCK_D)
        raw = scores_of(q, k, EXACT, PRECISION)
        pair = (i[:, None], j[None, :], batch, head[:, None], seqlen_q, end, diagonal)
        scores, _ = score(raw, *pair, scoring)
        visible = sees(*pair, left, right, scoring)
        scores = tl.where(visible, scores, -INF)
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor(scoring))
        p = tl.exp2(scores * factor(scoring) - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, 1)
        v_offsets = page * v_strides[0] + row * v_strides[1]
        v = _load_tile(v_ptr, v_offsets, v_strides[3], j < end, HEAD_DIM_V, BLOCK_DV)
        acc = add_weighted(acc * shrink[:, None], p, v, visible, EXACT, PRECISION)
        peak = new_peak

    # A total of 0 with a key in sight: the scores are too large for float32 to tell apart. NaN says so, 0 would not.
    sees_none = (total == 0.0) & (peak == LOWEST)
    total = tl.where(total == 0.0, tl.where(sees_none, 1.0, float("nan")), total)
    _store_tile(out_ptr, out_offsets, out_strides[4], real, acc / total[:, None], HEAD_DIM_V, BLOCK_DV)
    lse = tl.where(sees_none, -INF, (peak + tl.log2(total)) * LN_2)
    lse_ptr += split.to(tl.int64) * lse_strides[0] + batch * lse_strides[1]
    tl.store(lse_ptr + head * lse_strides[2] + i.to(tl.int64) * lse_strides[3], lse, mask=real)


@triton.jit(do_not_specialize=["heads", "seqlen_q", "splits", "rows"])
def attention_combine_kernel(
    part_ptr,  # (splits, B, Sq, H, Dv) float32, dense
    part_lse_ptr,  # (splits, B, H, Sq) float32, dense
    out_ptr,  # (B, Sq, H, Dv), dense
    lse_ptr,  # (B, H, Sq) float32, dense
    heads,
    seqlen_q,
    splits,
    rows,  # B Sq H
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program weighs the splits of one row, BLOCK_N of them at a time: each by the exponential of its sum."""
    row = tl.program_id(0).to(tl.int64)
    batch, i, head = row // heads // seqlen_q, row // heads % seqlen_q, row % heads
    lse_offset = (batch * heads + head) * seqlen_q + i
    acc = tl.zeros([BLOCK_DV], tl.float32)
    total = 0.0
    peak = LOWEST
    for start in tl.range(0, splits, BLOCK_N):
        split = start + tl.arange(0, BLOCK_N)
        first = split.to(tl.int64) * rows
        lse = tl.load(part_lse_ptr + first + lse_offset, mask=split < splits, other=-INF)
        part = _load_tile(part_ptr, (first + row) * HEAD_DIM_V, 1, lse != -INF, HEAD_DIM_V, BLOCK_DV)
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        weights = tl.exp(lse - new_peak)
        shrink = tl.exp(peak - new_peak)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * part, 0)
        peak = new_peak
    sees_none = total == 0.0
    total = tl.where(sees_none, 1.0, total)
    dims = tl.arange(0, BLOCK_DV).to(tl.int64)
    out = narrow(acc / total, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * HEAD_DIM_V + dims, out, mask=dims < HEAD_DIM_V)
    tl.store(lse_ptr + lse_offset, tl.where(sees_none, -INF, peak + tl.log(total)))
