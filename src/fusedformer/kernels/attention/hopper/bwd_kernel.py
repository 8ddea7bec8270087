"""Attention backward for Hopper, the gradients of k and v, and that of q where it may be added up in any order.

    p = exp(s - lse)    dp = dO v^T    ds = p * (dp - delta)    dv = p^T dO    dk = scale * ds^T q    dq = scale * ds k

A program has two consumer warpgroups of 64 keys each, and a warp each to load and to store. It passes over the queries
of all heads that read its keys, so that dK and dV stay in registers, and repeat bit for bit. A consumer computes S^T
and dP^T of its keys, adds P^T dO to dV and dS^T Q to dK from registers, and, FUSED, hands dS^T over through shared
memory: dQ = dS K takes the keys of both, and each consumer computes half of its columns, or one the main part and the
other the tail. The writer warp adds dQ to global memory by TMA reductions, one for each tile and half. Their order is
not fixed, so neither is dQ's last bit: dq_kernel.py is for those who want it fixed.

Formulas: ../bwd_kernel.py; legend, rings and ragged edges: ring.py; masks: queries.py. Queries past the end have a dO
and a delta of 0, and so do not count. Keys past the end are hidden by a mask, or, causal, by `right`. A window that
goes on past the last key sees them as keys of 0: their dK and dV are not stored, but where exp(-lse) overflows they are
not finite, and the repair computes the tile, FUSED dQ as well, once more for nothing. FLOPs: 2 B H Sq Sk (2 D + 2 Dv),
FUSED half as much again in D; half when causal. Memory: K, V, dK and dV once, Q and dO once for every 128 keys.
Source: Shah et al., "FlashAttention-3", 2024, section B.1, but for the exchange of dS, which halves dQ's traffic.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from fusedformer.kernels.attention.hopper.packing import (
    Packed,
    corner,
    keys_of,
    packed_place,
    place,
    queries_of,
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
from fusedformer.kernels.attention.hopper.queries import Passage, load_queries, next_ahead, visited_queries, weights
from fusedformer.kernels.attention.hopper.ring import (
    LN_2,
    ROWS,
    await_tile,
    make_barriers,
    make_ring,
    make_tiles,
    release,
    tile_of,
)
from fusedformer.kernels.gluon_compat import async_atomic_add, async_load, async_store, barrier

KEYS = gl.constexpr(128)  # of a program


class Shared(NamedTuple):
    """What the warps of a program share."""

    k: Any  # (1, 1, 128, D)
    v: Any  # (2, 1, 1, 64, D): a tile for each consumer; then that of dV
    keys_full: Any  # (1, 1) mbarrier: both are there
    q: Any  # Ring of (BLOCK_M, D)
    shift: Any  # (stages, 1, 1, BLOCK_M) float32, which comes with q
    dout: Any  # Ring of (BLOCK_M, D)
    delta: Any  # (stages, 1, 1, BLOCK_M) float32, which comes with dout
    dk: Any  # (2, 1, 1, 64, D), of q where that has the room
    queries_done: Any  # (1, 1) mbarrier: both consumers have read the last of q
    zeros: Any  # (2, 64) float32: NaN for a key whose dK or dV is not finite, else 0
    done: Any  # (1, 1) mbarrier: both consumers have written dK, dV and zeros


class Exchange(NamedTuple):
    """What the consumers share of dQ; all None where another kernel computes it.

    dS has two buffers, so that a consumer that got the other's dS(t) knows that the other's dQ(t - 2) is done with the
    buffer of dS(t - 2) and dS(t).
    """

    ds: Any  # (2, 128, BLOCK_M): transposed
    ds_full: Any  # (2, 1) mbarriers: both consumers have written their half
    dq: Any  # (2, 1, 1, BLOCK_M, D / 2) float32: a half for each consumer
    dq_full: Any  # (2, 1) mbarriers
    dq_empty: Any  # (2, 1) mbarriers: the writer has sent it off


@gluon.jit
def _bwd_step(
    t, dk, dk_tail, dv, dv_tail, k, v, shared, exchange, scale_log2, ahead, span,
    wid: gl.constexpr, CAUSAL: gl.constexpr, TAIL: gl.constexpr,
    s_layout: gl.constexpr, operand: gl.constexpr, dq_layout: gl.constexpr,
):  # fmt: skip
    """Take tile t of queries into dK, before its scale, and dV; and hand on its dQ."""
    BLOCK_M: gl.constexpr = shared.q.tiles.shape[-2]
    D: gl.constexpr = shared.q.tiles.shape[-1]
    FUSED: gl.constexpr = exchange.ds is not None
    HALF: gl.constexpr = D // 2 if TAIL == 0 or wid == 0 else TAIL  # of dQ's columns
    PARTS: gl.constexpr = 1 if TAIL == 0 else 2  # products in place of one
    dtype: gl.constexpr = shared.q.tiles.dtype
    q = tile_of(shared.q, t)
    dout = tile_of(shared.dout, t)
    await_tile(shared.q, t)
    s = scores(k.slice(ROWS * wid, ROWS), q, TAIL, s_layout)
    await_tile(shared.dout, t)
    dp = scores(v, dout, TAIL, s_layout)
    s = warpgroup_mma_wait(PARTS, [s])
    p = weights(s, shared, t, scale_log2, ahead, span, CAUSAL, s_layout)
    dp = warpgroup_mma_wait(0, [dp])
    delta = shared.delta.index(t % shared.delta.shape[0]).reshape([BLOCK_M]).load(gl.SliceLayout(0, s_layout))
    dv, dv_tail = weighted(gl.convert_layout(p.to(dtype), operand), dout, dv, dv_tail, TAIL)
    ds = (p * (dp - gl.expand_dims(delta, 0))).to(dtype)
    if FUSED:
        exchange.ds.index(t % 2).slice(ROWS * wid, ROWS).store(ds)
        fence_async_shared()
        barrier()
        mbarrier.arrive(exchange.ds_full.index(t % 2), count=1)
    dk, dk_tail = weighted(gl.convert_layout(ds, operand), q, dk, dk_tail, TAIL)
    if FUSED:
        mbarrier.wait(exchange.ds_full.index(t % 2), (t // 2) & 1)
        half = gl.full([BLOCK_M, HALF], 0.0, gl.float32, dq_layout)
        columns = k.slice(wid * (D // 2), HALF, dim=1)
        dq = warpgroup_mma(exchange.ds.index(t % 2).permute((1, 0)), columns, half, use_acc=False, is_async=True)
    dv, dv_tail = await_sums(PARTS + FUSED, dv, dv_tail, TAIL)
    release(shared.dout, t)
    dk, dk_tail = await_sums(1 if FUSED else 0, dk, dk_tail, TAIL)
    release(shared.q, t)
    if FUSED:
        dq = warpgroup_mma_wait(0, [dq])
        mbarrier.wait(exchange.dq_empty.index(wid), (t & 1) ^ 1)
        exchange.dq.index(wid).reshape([BLOCK_M, D // 2]).slice(0, HALF, dim=1).store(dq)
        fence_async_shared()
        barrier()
        mbarrier.arrive(exchange.dq_full.index(wid), count=1)
    return dk, dk_tail, dv, dv_tail


@gluon.jit
def _consumer(
    shared, exchange, passage, scale_log2,
    wid: gl.constexpr, CAUSAL: gl.constexpr, TAIL: gl.constexpr,
):  # fmt: skip
    """Computes dK and dV of 64 keys."""
    BLOCK_M: gl.constexpr = shared.q.tiles.shape[-2]
    D: gl.constexpr = shared.q.tiles.shape[-1]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    dk, dk_tail = no_sums(D, TAIL)
    dv, dv_tail = no_sums(D, TAIL)
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, dk.shape[1], 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, dk_layout, 2)
    HALF: gl.constexpr = D // 2 if TAIL == 0 or wid == 0 else TAIL
    dq_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    k = shared.k.reshape([KEYS, D])
    v = shared.v.index(wid).reshape([ROWS, D])
    mbarrier.wait(shared.keys_full.index(0), 0)
    tiles = passage.last - passage.first
    start = passage.ahead - wid * ROWS
    ahead = start
    for t in range(passage.group * tiles):
        dk, dk_tail, dv, dv_tail = _bwd_step(
            t, dk, dk_tail, dv, dv_tail, k, v, shared, exchange, scale_log2, ahead, passage.span, wid, CAUSAL, TAIL,
            s_layout, operand, dq_layout,
        )  # fmt: skip
        if CAUSAL:
            ahead = next_ahead(ahead, start, tiles, BLOCK_M)

    mbarrier.arrive(shared.queries_done.index(0), count=1)
    store_sums(v, dv, dv_tail, TAIL)
    dk, dk_tail = times(dk, dk_tail, scale_log2 * LN_2, TAIL)
    shared.zeros.index(wid).store(zeros_of(dk + dv, dk_tail + dv_tail, TAIL))
    mbarrier.wait(shared.queries_done.index(0), 0)  # the other has read the last of q, where dK may go
    store_sums(shared.dk.index(wid).reshape([ROWS, D]), dk, dk_tail, TAIL)
    fence_async_shared()
    barrier()
    mbarrier.arrive(shared.done.index(0), count=1)


@gluon.jit
def _producer(
    shared, passage, packed, q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, batch, kv_head, start_n
):
    """Loads what the consumers read."""
    keys_full = shared.keys_full.index(0)
    mbarrier.expect(keys_full, k_desc.block_type.nbytes + 2 * v_desc.block_type.nbytes)
    keys = keys_of(packed, batch)
    async_load(k_desc, corner(k_desc, keys, kv_head, start_n), keys_full, shared.k)
    for wid in gl.static_range(2):
        async_load(v_desc, corner(v_desc, keys, kv_head, start_n + wid * ROWS), keys_full, shared.v.index(wid))
    load_queries(shared, q_desc, dout_desc, shift_desc, delta_desc, passage, packed, batch, kv_head)


@gluon.jit
def _note_finite(finite_ptr, zeros):
    """Write whether a consumer's zeros are."""
    zeros = zeros.load(gl.BlockedLayout([2], [32], [1], [0]))
    gl.store(finite_ptr, gl.sum(zeros, 0) == 0.0)


@gluon.jit
def _writer(
    shared, exchange, passage, packed, dq_desc, dk_desc, dv_desc, finite_ptr, batch, kv_head, start_n, plane,
    seqlen_k,
):  # fmt: skip
    """Adds the consumers' halves of dQ to global memory, and stores dK and dV, and whether they are finite."""
    BLOCK_M: gl.constexpr = shared.q.tiles.shape[-2]
    if exchange.dq is not None:
        t = passage.first * 0
        for member in range(passage.group):
            head = kv_head * passage.group + member
            for tile in range(passage.first, passage.last):
                for wid in gl.static_range(2):
                    mbarrier.wait(exchange.dq_full.index(wid), t & 1)
                    column = wid * exchange.dq.shape[-1]
                    corner_m = corner(dq_desc, queries_of(packed, batch), head, tile * BLOCK_M, column)
                    async_atomic_add(dq_desc, corner_m, exchange.dq.index(wid))
                tma.store_wait(0)
                for wid in gl.static_range(2):
                    mbarrier.arrive(exchange.dq_empty.index(wid), count=1)
                t += 1
    mbarrier.wait(shared.done.index(0), 0)
    for wid in gl.static_range(2):
        corner_n = corner(dk_desc, keys_of(packed, batch), kv_head, start_n + wid * ROWS)
        async_store(dk_desc, corner_n, shared.dk.index(wid))
        async_store(dv_desc, corner_n, shared.v.index(wid))
    if finite_ptr is not None:  # here, for the consumers have no registers left
        for wid in gl.static_range(2):
            if packed.keys is None:
                tile = start_n // ROWS + wid  # as ../bwd_dkdv_kernel.py counts them, which repairs those that are not
                if tile * ROWS < seqlen_k:
                    _note_finite(finite_ptr + (plane * gl.cdiv(seqlen_k, ROWS) + tile), shared.zeros.index(wid))
            else:  # as ring.note_finite
                _note_finite(finite_ptr + (gl.num_programs(0) * wid + gl.program_id(0)), shared.zeros.index(wid))
    tma.store_wait(0)


@gluon.jit
def _make_exchange(dq_desc, dtype: gl.constexpr):
    BLOCK_M: gl.constexpr = dq_desc.block_type.shape[-2]
    ds_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, BLOCK_M], dtype)
    ds = gl.allocate_shared_memory(dtype, [2, KEYS, BLOCK_M], ds_layout)
    dq = make_tiles(dq_desc, 2)
    ds_full = make_barriers(2, 2)
    dq_full = make_barriers(2, 1)
    dq_empty = make_barriers(2, 1)
    return Exchange(ds, ds_full, dq, dq_full, dq_empty)


@gluon.jit
def _make_shared(q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, STAGES: gl.constexpr):
    dtype: gl.constexpr = q_desc.dtype
    k = gl.allocate_shared_memory(dtype, k_desc.block_type.shape, k_desc.layout)
    v = make_tiles(v_desc, 2)
    keys_full = make_barriers(1, 1)
    q = make_ring(q_desc, STAGES, 2)
    dout = make_ring(dout_desc, STAGES, 2)
    shift = make_tiles(shift_desc, STAGES)
    delta = make_tiles(delta_desc, STAGES)
    dk = q.tiles
    if q_desc.block_type.shape[-2] != ROWS or STAGES < 2:
        dk = make_tiles(v_desc, 2)
    zeros = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    queries_done = make_barriers(1, 2)
    done = make_barriers(1, 2)
    return Shared(k, v, keys_full, q, shift, dout, delta, dk, queries_done, zeros, done)


@gluon.jit(do_not_specialize=["kv_heads", "group", "seqlen_q", "seqlen_k", "right", "span"])
def attention_hopper_bwd_kernel(
    q_desc,  # (B, H, Sq, D), tiles (1, 1, BLOCK_M, D)
    k_desc,  # (B, Hkv, Sk, D), tiles (1, 1, 128, D)
    v_desc,  # (B, Hkv, Sk, Dv), tiles (1, 1, 64, D)
    dout_desc,  # (B, H, Sq, Dv), tiles (1, 1, BLOCK_M, D)
    delta_desc,  # (B, H, Sq) float32, tiles (1, 1, BLOCK_M); packed, as the next, spread: see spreading_kernel.py
    shift_desc,  # (B, H, Sq) float32, tiles (1, 1, BLOCK_M): lse in base 2, and +inf for a query that sees no key
    dq_desc,  # (B, H, Sq, D) float32, 0 at the start and without its scale at the end; tiles (1, 1, BLOCK_M, D / 2);
    # None where another kernel computes dQ
    dk_desc,  # (B, Hkv, Sk, D), tiles (1, 1, 64, D)
    dv_desc,  # (B, Hkv, Sk, Dv), tiles (1, 1, 64, D)
    finite_ptr,  # (B, Hkv, tiles of 64) int8: whether these keys' gradients are finite; None where nothing is hidden
    kv_heads,
    group,
    seqlen_q,
    seqlen_k,
    right,  # query i sees keys to i + right, of packed sequences counted from both ends; None: all
    span,  # and from i + right - span on; None: from the first on. Not without `right`
    scale_log2,  # scale * log2(e), positive
    STAGES: gl.constexpr,  # of the rings of queries
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    TAIL: gl.constexpr = 0,  # of all columns: products.py
    starts_q_ptr=None,  # (B + 1,) int32: rows of q before each packed sequence; None, as the next two, without any
    starts_k_ptr=None,  # (B + 1,) int32
    tiles_ptr=None,  # (slots, 2) int32: sequence, or -1 for none, and tile within it
):
    """One program computes dK and dV of 128 keys of one key head, and their share of dQ."""
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[-2]
    CAUSAL: gl.constexpr = right is not None
    if tiles_ptr is None:
        packed = Packed(None, None, None, None)  # made here: no function of Triton 3.6 can return None in a tuple
        plane, tile = place(seqlen_k, KEYS)
    else:
        sequence, plane, tile, packed = packed_place(tiles_ptr, starts_q_ptr, starts_k_ptr, kv_heads, seqlen_q, BLOCK_M)
        if sequence < 0:
            return
        seqlen_q = packed.queries.length
        seqlen_k = packed.keys.length
        if CAUSAL:
            right += seqlen_k - seqlen_q
    start_n = tile * KEYS  # the first keys first: when causal, they take longest
    batch = plane // kv_heads
    kv_head = plane % kv_heads
    first, last, ahead = visited_queries(start_n, seqlen_q, seqlen_k, right, span, KEYS, BLOCK_M, 0)
    passage = Passage(group, first, last, ahead, span)
    shared = _make_shared(q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, STAGES)
    exchange = Exchange(None, None, None, None, None)
    if dq_desc is not None:
        exchange = _make_exchange(dq_desc, q_desc.dtype)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consumer, (shared, exchange, passage, scale_log2, 0, CAUSAL, TAIL)),
            (_consumer, (shared, exchange, passage, scale_log2, 1, CAUSAL, TAIL)),
            (_producer, (
                shared, passage, packed, q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, batch, kv_head,
                start_n,
            )),
            (_writer, (
                shared, exchange, passage, packed, dq_desc, dk_desc, dv_desc, finite_ptr, batch, kv_head, start_n,
                plane, seqlen_k,
            )),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
