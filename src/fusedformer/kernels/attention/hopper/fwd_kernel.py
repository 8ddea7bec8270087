"""Attention forward for Hopper: a TMA producer warp and two or three consumer warpgroups of 64 queries each.

A consumer issues S(j) = Q K(j)^T before O += P(j-1) V(j-1) and takes the softmax of S(j) while the latter runs; the
consumers take turns at issuing products (PING_PONG), so that the softmax of one runs under the products of another.
P goes from registers to the tensor core. Masks are in the loops over boundary tiles only; the first tile, which has no
product before it, counts as one of them.

Where queries are few, the heads of a group share a tile: with HEADS of them, its row r is query r // HEADS of head
r % HEADS. Masks, LSE, sinks and slopes are by query and head all the same; TMA leaves out the heads that a group of no
power of 2 does not have. K and V are then read once for a group, not once for each of its heads.

Legend, rings and ragged edges: ring.py; scores: scores.py. FLOPs: 2 B H Sq Sk (D + Dv), half when causal. Memory: as
../fwd_kernel.py, whose second launch repairs what a hidden NaN got into: each consumer notes whether its rows are
finite.
Source: Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from fusedformer.kernels.attention.hopper.packing import (
    Packed,
    first_number,
    keys_of,
    packed_place,
    place,
    query_corner,
)
from fusedformer.kernels.attention.hopper.products import (
    await_sums,
    divided,
    no_sums,
    scaled,
    scores,
    store_sums,
    weighted,
    zeros_of,
)
from fusedformer.kernels.attention.hopper.ring import (
    INF,
    LN_2,
    ROWS,
    Sight,
    await_tile,
    fill,
    make_barriers,
    make_ring,
    make_tiles,
    note_finite,
    release,
    tile_of,
    visible_keys,
    visited_tiles,
    whole_tiles,
)
from fusedformer.kernels.attention.hopper.scores import LOG2_E, Scoring, load_slopes, score, with_softcap
from fusedformer.kernels.gluon_compat import async_load, async_store

LOWEST = gl.constexpr(-3.4028234663852886e38)


class Shared(NamedTuple):
    """What the warps of a program share."""

    q: Any  # (C, 1, 1, 64, D): a tile for each of C consumers
    q_full: Any  # (C, 1) mbarriers
    k: Any  # Ring of (BLOCK_N, D)
    v: Any  # Ring of (BLOCK_N, Dv)
    out: Any  # (C, 1, 1, 64, Dv), of q where that has as many columns and is not loaded anew
    turn: Any  # (C, 1) mbarriers: this consumer may issue products


@gluon.jit
def _softmax(s, peak, total, i, t, sight, scoring, MASKED: gl.constexpr, layout: gl.constexpr):
    """The weights of one tile; highest score and total weight after it, and what shrinks the sums before it."""
    s = score(s, i, (sight.first + t) * s.shape[1], scoring, layout)
    if MASKED:
        s = gl.where(visible_keys(i, t, sight, s.shape[1], layout), s, -INF)
    new_peak = gl.maximum(peak, gl.max(s, 1) * scoring.factor)
    p = gl.exp2(s * scoring.factor - gl.expand_dims(new_peak, 1))
    shrink = gl.exp2(peak - new_peak)
    return p, new_peak, total * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _fwd_step(
    t, acc, tail, peak, total, p, q, shared, sight, i, scoring, number,
    wid: gl.constexpr, MASKED: gl.constexpr, PING_PONG: gl.constexpr, TAIL: gl.constexpr, TAIL_V: gl.constexpr,
    s_layout: gl.constexpr, operand: gl.constexpr,
):  # fmt: skip
    """Scores and weights `p` of tile t, and the product of those of tile t - 1 with its values."""
    CONSUMERS: gl.constexpr = shared.turn.shape[0]
    await_tile(shared.k, t)
    if PING_PONG:
        mbarrier.wait(shared.turn.index(wid), (t - 1 - number) & 1)
    s = scores(q, tile_of(shared.k, t), TAIL, s_layout)
    await_tile(shared.v, t - 1)
    acc, tail = weighted(p, tile_of(shared.v, t - 1), acc, tail, TAIL_V)
    if PING_PONG:
        mbarrier.arrive(shared.turn.index((wid + 1) % CONSUMERS), count=1)
    s = warpgroup_mma_wait(1 if TAIL_V == 0 else 2, [s])
    release(shared.k, t)
    p, peak, total, shrink = _softmax(s, peak, total, i, t, sight, scoring, MASKED, s_layout)
    acc, tail = await_sums(0, acc, tail, TAIL_V)
    release(shared.v, t - 1)
    acc, tail = scaled(acc, tail, shrink, TAIL_V)
    p = gl.convert_layout(p.to(shared.v.tiles.dtype), operand)
    return acc, tail, peak, total, p


@gluon.jit
def _corner(desc, packed, plane, heads, group, start_m, HEADS: gl.constexpr):
    """Where the tile of queries from `start_m` on begins in the descriptor of q, and of out."""
    if HEADS == 1:
        return query_corner(desc, packed, plane, heads, start_m)
    else:
        kv_heads = heads // group
        return (plane // kv_heads, plane % kv_heads, start_m, 0, 0)


@gluon.jit
def attend(
    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane, group, start_m,
    begin, number, q_empty,
    wid: gl.constexpr, PING_PONG: gl.constexpr, HEADS: gl.constexpr, TAIL: gl.constexpr, TAIL_V: gl.constexpr,
):  # fmt: skip
    """Computes 64 rows, of the program's tile of queries `number`, whose tiles of keys are from `begin` on.

    `q_empty`: mbarriers that tell the producer where q may be loaded anew; None where it is not.
    """
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[-2]
    D: gl.constexpr = shared.k.tiles.shape[-1]
    DV: gl.constexpr = shared.v.tiles.shape[-1]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc, tail = no_sums(DV, TAIL_V)
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, acc.shape[1], 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    start_m += wid * (ROWS // HEADS)
    rows = gl.arange(0, ROWS, row_layout)
    i = start_m + rows // HEADS
    of_row = plane
    is_row = i < seqlen_q
    if HEADS > 1:
        of_row = plane * group + rows % HEADS
        is_row = is_row & (rows % HEADS < group)
    if scoring.slopes_ptr is not None:
        slopes = load_slopes(scoring, of_row % heads, row_layout)
        scoring = Scoring(scoring.factor, scoring.softcap_log2, scoring.rate, scoring.diagonal, None, None, slopes)
    tiles = sight.tiles
    whole_first, whole_last = whole_tiles(start_m, sight, BLOCK_N, begin + 1, ROWS // HEADS)
    # Not -inf, for -inf - -inf is NaN: a query that sees no key keeps this peak, and a total of 0.
    peak = gl.full([ROWS], LOWEST, gl.float32, row_layout)
    total = gl.full([ROWS], 0.0, gl.float32, row_layout)

    q = shared.q.index(wid).reshape([ROWS, D])
    mbarrier.wait(shared.q_full.index(wid), number & 1)
    await_tile(shared.k, begin)
    s = scores(q, tile_of(shared.k, begin), TAIL, s_layout)
    s = warpgroup_mma_wait(0, [s])
    release(shared.k, begin)
    p, peak, total, shrink = _softmax(s, peak, total, i, begin, sight, scoring, True, s_layout)
    p = gl.convert_layout(p.to(shared.v.tiles.dtype), operand)
    if sight.lower is not None:
        for t in range(begin + 1, whole_first):
            acc, tail, peak, total, p = _fwd_step(
                t, acc, tail, peak, total, p, q, shared, sight, i, scoring, number,
                wid, True, PING_PONG, TAIL, TAIL_V, s_layout, operand,
            )  # fmt: skip
    for t in range(whole_first, whole_last):
        acc, tail, peak, total, p = _fwd_step(
            t, acc, tail, peak, total, p, q, shared, sight, i, scoring, number,
            wid, False, PING_PONG, TAIL, TAIL_V, s_layout, operand,
        )  # fmt: skip
    for t in range(whole_last, tiles):
        acc, tail, peak, total, p = _fwd_step(
            t, acc, tail, peak, total, p, q, shared, sight, i, scoring, number,
            wid, True, PING_PONG, TAIL, TAIL_V, s_layout, operand,
        )  # fmt: skip
    if q_empty is not None:
        mbarrier.arrive(q_empty.index(wid), count=1)
    await_tile(shared.v, tiles - 1)
    acc, tail = weighted(p, tile_of(shared.v, tiles - 1), acc, tail, TAIL_V)
    acc, tail = await_sums(0, acc, tail, TAIL_V)
    if q_empty is not None:  # V is loaded anew too
        release(shared.v, tiles - 1)

    peak = with_softcap(peak, scoring)
    if sinks_ptr is not None:
        sink = gl.load(sinks_ptr + of_row % heads) * LOG2_E
        new_peak = gl.maximum(peak, sink)
        shrink = gl.exp2(peak - new_peak)
        total = total * shrink + gl.exp2(sink - new_peak)
        acc, tail = scaled(acc, tail, shrink, TAIL_V)
        peak = new_peak
    # A total of 0 with a key in sight: the scores are too large for float32 to tell apart. NaN says so, 0 would not.
    sees_none = (total == 0.0) & (peak == LOWEST)
    total = gl.where(total == 0.0, gl.where(sees_none, 1.0, float("nan")), total)
    acc, tail = divided(acc, tail, total, TAIL_V)
    out = shared.out.index(wid)
    if q_empty is not None:
        tma.store_wait(0)  # of the tile before
    store_sums(out.reshape([ROWS, DV]), acc, tail, TAIL_V)
    fence_async_shared()
    async_store(out_desc, _corner(out_desc, packed, plane, heads, group, start_m, HEADS), out)
    if finite_ptr is not None:
        note_finite(finite_ptr, zeros_of(acc, tail, TAIL_V), start_m, seqlen_q, plane, packed, wid)
    lse = gl.where(sees_none, -INF, (peak + gl.log2(total)) * LN_2)
    gl.store(lse_ptr + (first_number(packed, of_row, seqlen_q) + i), lse, mask=is_row)
    if q_empty is None:
        tma.store_wait(0)


@gluon.jit
def _consumer(
    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane, group, start_m,
    wid: gl.constexpr, PING_PONG: gl.constexpr, HEADS: gl.constexpr, TAIL: gl.constexpr, TAIL_V: gl.constexpr,
):  # fmt: skip
    """`attend` of the program's only tile of queries."""
    attend(
        shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane, group,
        start_m, 0, 0, None, wid, PING_PONG, HEADS, TAIL, TAIL_V,
    )  # fmt: skip


@gluon.jit
def _producer(shared, sight, packed, q_desc, k_desc, v_desc, heads, group, plane, start_m, HEADS: gl.constexpr):
    """Loads what the consumers read."""
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[-2]
    CONSUMERS: gl.constexpr = shared.turn.shape[0]
    first_head = plane if HEADS == 1 else plane * group
    head = first_head % heads
    keys = keys_of(packed, first_head // heads)
    for wid in gl.static_range(CONSUMERS):
        mbarrier.expect(shared.q_full.index(wid), q_desc.block_type.nbytes)
        corner = _corner(q_desc, packed, plane, heads, group, start_m + wid * (ROWS // HEADS), HEADS)
        async_load(q_desc, corner, shared.q_full.index(wid), shared.q.index(wid))
    for t in range(sight.tiles):
        start_n = (sight.first + t) * BLOCK_N
        fill(shared.k, k_desc, keys, head // group, start_n, t)
        fill(shared.v, v_desc, keys, head // group, start_n, t)


@gluon.jit(
    do_not_specialize=[
        "heads", "group", "seqlen_q", "seqlen_k", "diagonal", "left", "right", "slopes_batch", "slopes_head",
    ]
)  # fmt: skip
def attention_hopper_fwd_kernel(
    q_desc,  # (B, H, Sq, D), tiles (1, 1, 64, D)
    k_desc,  # (B, Hkv, Sk, D), tiles (1, 1, BLOCK_N, D)
    v_desc,  # (B, Hkv, Sk, Dv), tiles (1, 1, BLOCK_N, Dv)
    sinks_ptr,  # (H,) float32, or None
    out_desc,  # (B, H, Sq, Dv), tiles (1, 1, 64, Dv)
    lse_ptr,  # (B, H, Sq) float32, contiguous
    finite_ptr,  # (B, H, tiles of 64) int8: whether these queries are finite; None where nothing is hidden
    heads,
    group,
    seqlen_q,
    seqlen_k,
    diagonal,  # the key that query 0 faces
    left,  # or None
    right,  # or None
    scale_log2,  # scale * log2(e), positive
    softcap_log2,  # softcap * log2(e), or None
    slopes_ptr,  # (B, H) float32, or None
    slopes_batch,  # strides of slopes
    slopes_head,
    STAGES: gl.constexpr,  # of the rings of keys and of values
    PING_PONG: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    CONSUMERS: gl.constexpr,  # 2, or 3, which have fewer registers each
    HEADS: gl.constexpr,  # that share a tile: 1, or `group` of them rounded up to a power of 2; 1 where it is packed
    TAIL: gl.constexpr = 0,  # of the columns of q and k, and of v: products.py
    TAIL_V: gl.constexpr = 0,
    starts_q_ptr=None,  # (B + 1,) int32: rows of q before each packed sequence; None, as the next two, without any
    starts_k_ptr=None,  # (B + 1,) int32
    tiles_ptr=None,  # (slots, 2) int32: sequence, or -1 for none, and tile within it
):
    """One program computes 64 queries a consumer of one head, or 64 / HEADS of each head of a group.

    Then q and out are (B, Hkv, Sq, group, D), in tiles (1, 1, 64 / HEADS, HEADS, D).
    """
    BLOCK_N: gl.constexpr = k_desc.block_type.shape[-2]
    QUERIES: gl.constexpr = CONSUMERS * ROWS // HEADS
    if tiles_ptr is None:
        packed = Packed(None, None, None, None)  # made here: no function of Triton 3.6 can return None in a tuple
        plane, tile = place(seqlen_q, QUERIES)
    else:
        sequence, plane, tile, packed = packed_place(tiles_ptr, starts_q_ptr, starts_k_ptr, heads, seqlen_q)
        if sequence < 0:
            return
        seqlen_q = packed.queries.length
        seqlen_k = packed.keys.length
        diagonal = seqlen_k - seqlen_q
    start_m = (gl.cdiv(seqlen_q, QUERIES) - 1 - tile) * QUERIES  # last rows first: when causal, they take longest
    lower = None if left is None else diagonal - left
    upper = None if right is None else diagonal + right + 1
    first, tiles = visited_tiles(start_m, seqlen_k, lower, upper, BLOCK_N, ROWS // HEADS, CONSUMERS)
    sight = Sight(seqlen_k, lower, upper, first, gl.maximum(tiles, 1))
    if slopes_ptr is not None:
        slopes_ptr += (plane if HEADS == 1 else plane * group) // heads * slopes_batch
    factor = scale_log2 if softcap_log2 is None else 2 * softcap_log2
    rate = None if softcap_log2 is None else 2 * LOG2_E * (scale_log2 / softcap_log2)
    scoring = Scoring(factor, softcap_log2, rate, diagonal, slopes_ptr, slopes_head, None)

    q = make_tiles(q_desc, CONSUMERS)
    out = q
    if out_desc.block_type.shape != q_desc.block_type.shape:
        out = make_tiles(out_desc, CONSUMERS)
    q_full = make_barriers(CONSUMERS, 1)
    k = make_ring(k_desc, STAGES, CONSUMERS)
    v = make_ring(v_desc, STAGES, CONSUMERS)
    turn = make_barriers(CONSUMERS, 1)
    shared = Shared(q, q_full, k, v, out, turn)
    fence_async_shared()
    if PING_PONG:
        mbarrier.arrive(turn.index(0), count=1)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consumer, (
                    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane,
                    group, start_m, 0, PING_PONG, HEADS, TAIL, TAIL_V,
                )),
                (_consumer, (
                    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane,
                    group, start_m, 1, PING_PONG, HEADS, TAIL, TAIL_V,
                )),
                (_producer, (shared, sight, packed, q_desc, k_desc, v_desc, heads, group, plane, start_m, HEADS)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consumer, (
                    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane,
                    group, start_m, 0, PING_PONG, HEADS, TAIL, TAIL_V,
                )),
                (_consumer, (
                    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane,
                    group, start_m, 1, PING_PONG, HEADS, TAIL, TAIL_V,
                )),
                (_consumer, (
                    shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, seqlen_q, heads, plane,
                    group, start_m, 2, PING_PONG, HEADS, TAIL, TAIL_V,
                )),
                (_producer, (shared, sight, packed, q_desc, k_desc, v_desc, heads, group, plane, start_m, HEADS)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
