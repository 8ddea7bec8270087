"""Attention backward for Hopper, the gradients of k and v of wide heads, whose columns are shared out.

    p = exp(s - lse)    dp = dO v^T    ds = p * (dp - delta)    dv = p^T dO    dk = scale * ds^T q

64 keys of dK and dV in 256 columns each are 256 registers of a warpgroup's threads, more than there are. So a program
has 64 keys, and of its two consumers one computes S^T, P^T and dV, the other dP^T, dS^T and dK: as many products each,
none of them twice, and P^T alone goes from one to the other, through shared memory, in 16 bits: dS^T is of weights that
are rounded as those of dV are, where the kernel of narrower heads has them in float32. Both sums stay in registers, and
repeat bit for bit. In an iteration a consumer adds the product of its last weights, P^T or dS^T, and computes the next
ones while the tensor core is the other's.

Two halves of the columns of both would cost S^T and dP^T twice, or both of them exchanged, with products half as wide,
which read more shared memory for their worth: at most 660 and 720 TFLOP/s in the model where this has 880.

Formulas: ../bwd_kernel.py; legend, rings and ragged edges: ring.py; masks: queries.py. FLOPs: 4 B H Sq Sk (D + Dv),
half when causal. Memory: K, V, dK and dV once, Q and dO once for every 64 keys: from L2, 28 bytes a cycle and SM at the
model's rate, of the 39 that it takes the chip for. Not for packed sequences.
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

from fusedformer.kernels.attention.hopper.packing import Packed
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
from fusedformer.kernels.gluon_compat import async_load, async_store, barrier


class Shared(NamedTuple):
    """What the warps of a program share.

    P^T has as many stages as the rings, and needs no barrier to say that one is free: its writer has the queries of
    tile t, so the reader is done with those, and with P^T, of the tile that had the stage before.
    """

    k: Any  # (1, 1, 1, 64, D); then dK
    v: Any  # (1, 1, 1, 64, Dv); then dV
    keys_full: Any  # (1, 1) mbarrier: both are there
    q: Any  # Ring of (BLOCK_M, D)
    shift: Any  # (stages, 1, 1, BLOCK_M) float32, which comes with q
    dout: Any  # Ring of (BLOCK_M, Dv)
    delta: Any  # (stages, 1, 1, BLOCK_M) float32, which comes with dout
    p: Any  # (stages, 64, BLOCK_M): P^T, from the consumer of dV to that of dK
    p_full: Any  # (stages, 1) mbarriers
    keys_done: Any  # (1, 1) mbarrier: both consumers have read the last of k and v
    zeros: Any  # (2, 64) float32: NaN for a key whose dV, then dK, is not finite, else 0
    done: Any  # (1, 1) mbarrier: both consumers have written their sums and zeros


@gluon.jit
def _hand_over(p, shared, t):
    """Write P^T of tile t for the other consumer."""
    stage = t % shared.p.shape[0]
    shared.p.index(stage).store(p)
    barrier()
    mbarrier.arrive(shared.p_full.index(stage), count=1)


@gluon.jit
def _take_over(shared, t, layout: gl.constexpr):
    """P^T of tile t as the other consumer wrote it."""
    STAGES: gl.constexpr = shared.p.shape[0]
    mbarrier.wait(shared.p_full.index(t % STAGES), (t // STAGES) & 1)
    p = shared.p.index(t % STAGES).load(layout)
    barrier()
    return p


@gluon.jit
def _weights(raw, shared, t, scale_log2, ahead, span, OF_V: gl.constexpr, CAUSAL: gl.constexpr, layout: gl.constexpr):
    """P^T of tile t from S^T, or dS^T from dP^T."""
    if OF_V:
        p = weights(raw, shared, t, scale_log2, ahead, span, CAUSAL, layout).to(shared.q.tiles.dtype)
        _hand_over(p, shared, t)
        return p
    else:
        BLOCK_M: gl.constexpr = shared.q.tiles.shape[3]
        stage = t % shared.delta.shape[0]
        delta = shared.delta.index(stage).reshape([BLOCK_M]).load(gl.SliceLayout(0, layout))
        p = _take_over(shared, t, layout).to(gl.float32)
        return (p * (raw - gl.expand_dims(delta, 0))).to(shared.q.tiles.dtype)


@gluon.jit
def _consumer(
    shared, passage, scale_log2, OF_V: gl.constexpr, CAUSAL: gl.constexpr, TAIL: gl.constexpr, TAIL_V: gl.constexpr
):
    """Computes dV of 64 keys, or dK of them."""
    BLOCK_M: gl.constexpr = shared.q.tiles.shape[3]
    if OF_V:
        mine, scored, summed = shared.k, shared.q, shared.dout
    else:
        mine, scored, summed = shared.v, shared.dout, shared.q
    COLUMNS: gl.constexpr = summed.tiles.shape[4]
    raw_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    SCORED: gl.constexpr = TAIL if OF_V else TAIL_V  # tails: of the columns that scores are summed over
    SUMMED: gl.constexpr = TAIL_V if OF_V else TAIL  # and of those that the sums have
    PARTS: gl.constexpr = 1 if SCORED == 0 else 2  # products in place of one
    sums, tail = no_sums(COLUMNS, SUMMED)
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, sums.shape[1], 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sum_layout, 2)
    tiles = passage.last - passage.first
    ahead = passage.ahead

    mbarrier.wait(shared.keys_full.index(0), 0)
    rows = mine.index(0).reshape([ROWS, mine.shape[4]])
    await_tile(scored, 0)
    raw = scores(rows, tile_of(scored, 0), SCORED, raw_layout)
    raw = warpgroup_mma_wait(0, [raw])
    w = _weights(raw, shared, passage.first * 0, scale_log2, ahead, passage.span, OF_V, CAUSAL, raw_layout)
    release(scored, 0)
    for t in range(1, passage.group * tiles):
        if CAUSAL:
            ahead = next_ahead(ahead, passage.ahead, tiles, BLOCK_M)
        await_tile(summed, t - 1)
        sums, tail = weighted(gl.convert_layout(w, operand), tile_of(summed, t - 1), sums, tail, SUMMED)
        await_tile(scored, t)
        raw = scores(rows, tile_of(scored, t), SCORED, raw_layout)
        sums, tail = await_sums(PARTS, sums, tail, SUMMED)
        release(summed, t - 1)
        raw = warpgroup_mma_wait(0, [raw])
        w = _weights(raw, shared, t, scale_log2, ahead, passage.span, OF_V, CAUSAL, raw_layout)
        release(scored, t)
    last = passage.group * tiles - 1
    await_tile(summed, last)
    sums, tail = weighted(gl.convert_layout(w, operand), tile_of(summed, last), sums, tail, SUMMED)
    mbarrier.arrive(shared.keys_done.index(0), count=1)
    sums, tail = await_sums(0, sums, tail, SUMMED)

    mbarrier.wait(shared.keys_done.index(0), 0)  # the other reads k or v, where these sums go
    if OF_V:
        store_sums(shared.v.index(0).reshape([ROWS, COLUMNS]), sums, tail, SUMMED)
        shared.zeros.index(0).store(zeros_of(sums, tail, SUMMED))
    else:
        sums, tail = times(sums, tail, scale_log2 * LN_2, SUMMED)
        store_sums(shared.k.index(0).reshape([ROWS, COLUMNS]), sums, tail, SUMMED)
        shared.zeros.index(1).store(zeros_of(sums, tail, SUMMED))
    fence_async_shared()
    barrier()
    mbarrier.arrive(shared.done.index(0), count=1)


@gluon.jit
def _producer(shared, passage, q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, batch, kv_head, start_n):
    """Loads what the consumers read."""
    keys_full = shared.keys_full.index(0)
    mbarrier.expect(keys_full, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
    async_load(k_desc, [batch, kv_head, start_n, 0], keys_full, shared.k.index(0))
    async_load(v_desc, [batch, kv_head, start_n, 0], keys_full, shared.v.index(0))
    dense = Packed(None, None, None, None)
    load_queries(shared, q_desc, dout_desc, shift_desc, delta_desc, passage, dense, batch, kv_head)


@gluon.jit
def _writer(shared, dk_desc, dv_desc, finite_ptr, batch, kv_head, start_n):
    """Stores dK and dV, and whether they are finite."""
    mbarrier.wait(shared.done.index(0), 0)
    async_store(dk_desc, [batch, kv_head, start_n, 0], shared.k.index(0))
    async_store(dv_desc, [batch, kv_head, start_n, 0], shared.v.index(0))
    if finite_ptr is not None:
        layout: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
        zeros = shared.zeros.index(0).load(layout) + shared.zeros.index(1).load(layout)
        gl.store(finite_ptr + gl.program_id(0), gl.sum(zeros, 0) == 0.0)
    tma.store_wait(0)


@gluon.jit
def _make_shared(q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, STAGES: gl.constexpr):
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[2]
    dtype: gl.constexpr = q_desc.dtype
    k = make_tiles(k_desc, 1)
    v = make_tiles(v_desc, 1)
    keys_full = make_barriers(1, 1)
    q = make_ring(q_desc, STAGES, 2)
    dout = make_ring(dout_desc, STAGES, 2)
    shift = make_tiles(shift_desc, STAGES)
    delta = make_tiles(delta_desc, STAGES)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, BLOCK_M], dtype)
    p = gl.allocate_shared_memory(dtype, [STAGES, ROWS, BLOCK_M], p_layout)
    p_full = make_barriers(STAGES, 1)
    keys_done = make_barriers(1, 2)
    zeros = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    done = make_barriers(1, 2)
    return Shared(k, v, keys_full, q, shift, dout, delta, p, p_full, keys_done, zeros, done)


@gluon.jit(do_not_specialize=["kv_heads", "group", "seqlen_q", "seqlen_k", "right", "span"])
def attention_hopper_dkdv_wide_kernel(
    q_desc,  # (B, H, Sq, D), tiles (1, 1, BLOCK_M, D)
    k_desc,  # (B, Hkv, Sk, D), tiles (1, 1, 64, D)
    v_desc,  # (B, Hkv, Sk, Dv), tiles (1, 1, 64, Dv)
    dout_desc,  # (B, H, Sq, Dv), tiles (1, 1, BLOCK_M, Dv)
    delta_desc,  # (B, H, Sq) float32, tiles (1, 1, BLOCK_M)
    shift_desc,  # (B, H, Sq) float32, tiles (1, 1, BLOCK_M): lse in base 2, and +inf for a query that sees no key
    dk_desc,  # (B, Hkv, Sk, D), tiles (1, 1, 64, D)
    dv_desc,  # (B, Hkv, Sk, Dv), tiles (1, 1, 64, Dv)
    finite_ptr,  # (programs,) int8: whether its gradients are finite; None where nothing is hidden
    kv_heads,
    group,
    seqlen_q,
    seqlen_k,
    right,  # query i sees keys to i + right; None: all
    span,  # and from i + right - span on; None: from the first on. Not without `right`
    scale_log2,  # scale * log2(e), positive
    STAGES: gl.constexpr,  # of the rings of queries
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    TAIL: gl.constexpr = 0,  # of the columns of q and k, and of v: products.py
    TAIL_V: gl.constexpr = 0,
):
    """One program computes dK and dV of 64 keys of one key head."""
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[2]
    CAUSAL: gl.constexpr = right is not None
    tiles_n = gl.cdiv(seqlen_k, ROWS)
    plane = gl.program_id(0) // tiles_n
    start_n = gl.program_id(0) % tiles_n * ROWS  # the first keys first: when causal, they take longest
    batch = plane // kv_heads
    kv_head = plane % kv_heads
    first, last, ahead = visited_queries(start_n, seqlen_q, seqlen_k, right, span, ROWS, BLOCK_M, 1)
    passage = Passage(group, first, last, ahead, span)
    shared = _make_shared(q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, STAGES)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consumer, (shared, passage, scale_log2, True, CAUSAL, TAIL, TAIL_V)),
            (_consumer, (shared, passage, scale_log2, False, CAUSAL, TAIL, TAIL_V)),
            (_producer, (
                shared, passage, q_desc, k_desc, v_desc, dout_desc, shift_desc, delta_desc, batch, kv_head, start_n,
            )),
            (_writer, (shared, dk_desc, dv_desc, finite_ptr, batch, kv_head, start_n)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
