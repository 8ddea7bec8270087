"""Attention backward for Hopper, the gradient of q: a TMA producer warp and two consumer warpgroups of 64 queries each.

    p = exp(s - lse)    dp = dO v^T    ds = p * (dp - delta)    dq = scale * ds k

dQ is summed in registers by one consumer in one order, so it repeats bit for bit. Formulas: ../bwd_kernel.py; legend,
rings and ragged edges: ring.py. FLOPs: 2 B H Sq Sk (2 D + Dv), half when causal. Memory: Q, dO and dQ once, K and V
once for every 128 queries.
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
    no_sums,
    scores,
    store_sums,
    times,
    weighted,
    zeros_of,
)
from fusedformer.kernels.attention.hopper.ring import (
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
    visited_tiles,
    whole_tiles,
)
from fusedformer.kernels.gluon_compat import async_load, async_store


class Shared(NamedTuple):
    """What the warps of a program share."""

    q: Any  # (2, 1, 1, 64, D): a tile for each consumer; then that of dQ
    dout: Any  # (2, 1, 1, 64, Dv)
    rows_full: Any  # (2, 1) mbarriers: of both
    k: Any  # Ring of (BLOCK_N, D)
    v: Any  # Ring of (BLOCK_N, Dv)


@gluon.jit
def _visible_keys(start_m, t, sight, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """(64, BLOCK_N): which queries from `start_m` on see which keys of tile t, as `visible_keys` of the forward."""
    # Sums of two parts, for the compiler: of one number that the thread has, and of constants.
    # The forward's way spills here, and this one there.
    start_n = (sight.first + t) * BLOCK_N
    j = gl.expand_dims(gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout)), 0)
    i = gl.expand_dims(gl.arange(0, ROWS, gl.SliceLayout(1, layout)), 1)
    visible = (j & -7) < sight.seqlen_k - start_n - (j & 6)
    part = (i & -9) - (j & 6) + (start_m - start_n)
    constant = (j & -7) - (i & 8)
    if sight.upper is not None:
        visible = visible & (part + sight.upper > constant)
    if sight.lower is not None:
        visible = visible & (part + sight.lower <= constant)
    return visible


@gluon.jit
def _dq_step(
    t, dq, tail, q, dout, shift, delta, shared, sight, start_m, scale_log2,
    MASKED: gl.constexpr, TAIL: gl.constexpr, TAIL_V: gl.constexpr, s_layout: gl.constexpr, operand: gl.constexpr,
):  # fmt: skip
    """Take tile t of keys into dQ, before its scale."""
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[-2]
    await_tile(shared.k, t)
    s = scores(q, tile_of(shared.k, t), TAIL, s_layout)
    await_tile(shared.v, t)
    dp = scores(dout, tile_of(shared.v, t), TAIL_V, s_layout)
    s = warpgroup_mma_wait(1 if TAIL_V == 0 else 2, [s])
    p = gl.exp2(s * scale_log2 - gl.expand_dims(shift, 1))
    if MASKED:
        p = gl.where(_visible_keys(start_m, t, sight, BLOCK_N, s_layout), p, 0.0)
    dp = warpgroup_mma_wait(0, [dp])
    release(shared.v, t)
    ds = p * (dp - gl.expand_dims(delta, 1))
    ds = gl.convert_layout(ds.to(shared.k.tiles.dtype), operand)
    dq, tail = weighted(ds, tile_of(shared.k, t), dq, tail, TAIL)
    dq, tail = await_sums(0, dq, tail, TAIL)
    release(shared.k, t)
    return dq, tail


@gluon.jit
def _consumer(
    shared, sight, packed, delta_ptr, shift_ptr, dq_desc, finite_ptr, scale_log2, seqlen_q, heads, plane, start_m,
    wid: gl.constexpr, TAIL: gl.constexpr, TAIL_V: gl.constexpr,
):  # fmt: skip
    """Computes dQ of 64 queries."""
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[-2]
    D: gl.constexpr = shared.q.shape[-1]
    DV: gl.constexpr = shared.dout.shape[-1]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    dq, tail = no_sums(D, TAIL)
    dq_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, dq.shape[1], 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, dq_layout, 2)
    start_m += wid * ROWS
    i = start_m + gl.arange(0, ROWS, gl.SliceLayout(1, s_layout))
    whole_first, whole_last = whole_tiles(start_m, sight, BLOCK_N, 0)
    offsets = first_number(packed, plane, seqlen_q) + i
    shift = gl.load(shift_ptr + offsets, mask=i < seqlen_q, other=0.0)
    delta = gl.load(delta_ptr + offsets, mask=i < seqlen_q, other=0.0)

    q = shared.q.index(wid).reshape([ROWS, D])
    dout = shared.dout.index(wid).reshape([ROWS, DV])
    mbarrier.wait(shared.rows_full.index(wid), 0)
    if sight.lower is not None:
        for t in range(0, whole_first):
            dq, tail = _dq_step(
                t, dq, tail, q, dout, shift, delta, shared, sight, start_m, scale_log2,
                True, TAIL, TAIL_V, s_layout, operand,
            )  # fmt: skip
    for t in range(whole_first, whole_last):
        dq, tail = _dq_step(
            t, dq, tail, q, dout, shift, delta, shared, sight, start_m, scale_log2,
            False, TAIL, TAIL_V, s_layout, operand,
        )  # fmt: skip
    for t in range(whole_last, sight.tiles):
        dq, tail = _dq_step(
            t, dq, tail, q, dout, shift, delta, shared, sight, start_m, scale_log2,
            True, TAIL, TAIL_V, s_layout, operand,
        )  # fmt: skip

    dq, tail = times(dq, tail, scale_log2 * LN_2, TAIL)
    store_sums(q, dq, tail, TAIL)
    fence_async_shared()
    async_store(dq_desc, query_corner(dq_desc, packed, plane, heads, start_m), shared.q.index(wid))
    if finite_ptr is not None:
        note_finite(finite_ptr, zeros_of(dq, tail, TAIL), start_m, seqlen_q, plane, packed, wid)
    tma.store_wait(0)


@gluon.jit
def _producer(shared, sight, packed, q_desc, k_desc, v_desc, dout_desc, heads, group, plane, start_m):
    """Loads what the consumers read."""
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[-2]
    head = plane % heads
    keys = keys_of(packed, plane // heads)
    for wid in gl.static_range(2):
        full = shared.rows_full.index(wid)
        mbarrier.expect(full, q_desc.block_type.nbytes + dout_desc.block_type.nbytes)
        rows = start_m + wid * ROWS
        async_load(q_desc, query_corner(q_desc, packed, plane, heads, rows), full, shared.q.index(wid))
        async_load(dout_desc, query_corner(dout_desc, packed, plane, heads, rows), full, shared.dout.index(wid))
    for t in range(sight.tiles):
        start_n = (sight.first + t) * BLOCK_N
        fill(shared.k, k_desc, keys, head // group, start_n, t)
        fill(shared.v, v_desc, keys, head // group, start_n, t)


@gluon.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "diagonal", "left", "right"])
def attention_hopper_dq_kernel(
    q_desc,  # (B, H, Sq, D), tiles (1, 1, 64, D)
    k_desc,  # (B, Hkv, Sk, D), tiles (1, 1, BLOCK_N, D)
    v_desc,  # (B, Hkv, Sk, Dv), tiles (1, 1, BLOCK_N, Dv)
    dout_desc,  # (B, H, Sq, Dv), tiles (1, 1, 64, Dv)
    delta_ptr,  # (B, H, Sq) float32, contiguous
    shift_ptr,  # (B, H, Sq) float32, contiguous: lse in base 2, and +inf for a query that sees no key
    dq_desc,  # (B, H, Sq, D), tiles (1, 1, 64, D)
    finite_ptr,  # (B, H, tiles of 64) int8: whether these queries' dQ is finite; None where nothing is hidden
    heads,
    group,
    seqlen_q,
    seqlen_k,
    diagonal,  # the key that query 0 faces
    left,  # or None
    right,  # or None
    scale_log2,  # scale * log2(e), positive
    STAGES: gl.constexpr,  # of the rings of keys and of values
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    TAIL: gl.constexpr = 0,  # of the columns of q and k, and of v: products.py
    TAIL_V: gl.constexpr = 0,
    starts_q_ptr=None,  # (B + 1,) int32: rows of q before each packed sequence; None, as the next two, without any
    starts_k_ptr=None,  # (B + 1,) int32
    tiles_ptr=None,  # (slots, 2) int32: sequence, or -1 for none, and tile within it
):
    """One program computes dQ of 128 queries of one head."""
    BLOCK_N: gl.constexpr = k_desc.block_type.shape[-2]
    if tiles_ptr is None:
        packed = Packed(None, None, None, None)  # made here: no function of Triton 3.6 can return None in a tuple
        plane, tile = place(seqlen_q, 2 * ROWS)
    else:
        sequence, plane, tile, packed = packed_place(tiles_ptr, starts_q_ptr, starts_k_ptr, heads, seqlen_q)
        if sequence < 0:
            return
        seqlen_q = packed.queries.length
        seqlen_k = packed.keys.length
        diagonal = seqlen_k - seqlen_q
    start_m = (gl.cdiv(seqlen_q, 2 * ROWS) - 1 - tile) * (2 * ROWS)  # last rows first: when causal, they take longest
    lower = None if left is None else diagonal - left
    upper = None if right is None else diagonal + right + 1
    first, tiles = visited_tiles(start_m, seqlen_k, lower, upper, BLOCK_N)
    sight = Sight(seqlen_k, lower, upper, first, tiles)

    q = make_tiles(q_desc, 2)
    dout = make_tiles(dout_desc, 2)
    rows_full = make_barriers(2, 1)
    k = make_ring(k_desc, STAGES, 2)
    v = make_ring(v_desc, STAGES, 2)
    shared = Shared(q, dout, rows_full, k, v)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consumer, (
                shared, sight, packed, delta_ptr, shift_ptr, dq_desc, finite_ptr, scale_log2, seqlen_q, heads, plane,
                start_m, 0, TAIL, TAIL_V,
            )),
            (_consumer, (
                shared, sight, packed, delta_ptr, shift_ptr, dq_desc, finite_ptr, scale_log2, seqlen_q, heads, plane,
                start_m, 1, TAIL, TAIL_V,
            )),
            (_producer, (shared, sight, packed, q_desc, k_desc, v_desc, dout_desc, heads, group, plane, start_m)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
