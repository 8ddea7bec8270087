"""Attention forward for Hopper on a persistent grid: a program on each SM computes one tile of queries after another.

The warps and what they compute are those of fwd_kernel.py, which tiles in which order: work.py. Between two tiles no
SM stands still: the producer loads K, Q and V of the next while the consumers end the last. So

- tiles of the rings, and mbarriers' phases, count on from tile to tile of queries;
- Q is loaded anew when its consumer has its last scores (`q_empty`);
- O has shared memory of its own, from which TMA stores it while the consumer is at the next tile.

FLOPs and memory: as fwd_kernel.py.
Source: Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from fusedformer.kernels.attention.hopper.fwd_kernel import Shared, attend
from fusedformer.kernels.attention.hopper.packing import Packed, corner
from fusedformer.kernels.attention.hopper.ring import (
    ROWS,
    Sight,
    fill,
    make_barriers,
    make_ring,
    make_tiles,
    visited_tiles,
)
from fusedformer.kernels.attention.hopper.scores import LOG2_E, Scoring
from fusedformer.kernels.attention.hopper.work import Work, count_of, place_of
from fusedformer.kernels.gluon_compat import async_load


@gluon.jit
def _consumer(
    shared, q_empty, work, keys, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, slopes_batch,
    seqlen_q, heads, group, wid: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """Computes 64 rows of each tile of queries; `keys` is the Sight of all of them, from the first tile on."""
    QUERIES: gl.constexpr = 2 * ROWS
    begin = work.tiles * 0
    for number in range(count_of(work)):
        plane, tile = place_of(number, work)
        start_m = (work.tiles - 1 - tile) * QUERIES
        first, tiles = visited_tiles(start_m, keys.seqlen_k, keys.lower, keys.upper, shared.k.tiles.shape[-2])
        end = begin + gl.maximum(tiles, 1)
        sight = Sight(keys.seqlen_k, keys.lower, keys.upper, first - begin, end)
        of_plane = scoring
        if scoring.slopes_ptr is not None:
            slopes_ptr = scoring.slopes_ptr + plane // heads * slopes_batch
            of_plane = Scoring(
                scoring.factor, scoring.softcap_log2, scoring.rate, scoring.diagonal, slopes_ptr, scoring.slopes_stride,
                None,
            )  # fmt: skip
        attend(
            shared, sight, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, of_plane, seqlen_q, heads, plane, group,
            start_m, begin, number, q_empty, wid, PING_PONG, 1, 0, 0,
        )  # fmt: skip
        begin = end
    tma.store_wait(0)


@gluon.jit
def _producer(shared, q_empty, work, keys, q_desc, k_desc, v_desc, heads, group):
    """Loads what the consumers read."""
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[-2]
    CONSUMERS: gl.constexpr = shared.turn.shape[0]
    begin = work.tiles * 0
    for number in range(count_of(work)):
        plane, tile = place_of(number, work)
        start_m = (work.tiles - 1 - tile) * (CONSUMERS * ROWS)
        first, tiles = visited_tiles(start_m, keys.seqlen_k, keys.lower, keys.upper, BLOCK_N)
        end = begin + gl.maximum(tiles, 1)
        batch = plane // heads
        head = plane % heads
        fill(shared.k, k_desc, batch, head // group, first * BLOCK_N, begin)
        for wid in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(wid), number & 1 ^ 1)
            mbarrier.expect(shared.q_full.index(wid), q_desc.block_type.nbytes)
            place = corner(q_desc, batch, head, start_m + wid * ROWS)
            async_load(q_desc, place, shared.q_full.index(wid), shared.q.index(wid))
        fill(shared.v, v_desc, batch, head // group, first * BLOCK_N, begin)
        for t in range(begin + 1, end):
            start_n = (first + t - begin) * BLOCK_N
            fill(shared.k, k_desc, batch, head // group, start_n, t)
            fill(shared.v, v_desc, batch, head // group, start_n, t)
        begin = end


@gluon.jit(
    do_not_specialize=[
        "planes", "section", "heads", "group", "seqlen_q", "seqlen_k", "diagonal", "left", "right", "slopes_batch",
        "slopes_head",
    ]
)  # fmt: skip
def attention_hopper_fwd_persistent_kernel(
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
    planes,  # B H
    section,  # planes of a section, see work.py
    STAGES: gl.constexpr,  # of the rings of keys and of values
    PING_PONG: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One program computes, one after another, its share of all tiles of 128 queries of a head."""
    lower = None if left is None else diagonal - left
    upper = None if right is None else diagonal + right + 1
    packed = Packed(None, None, None, None)
    keys = Sight(seqlen_k, lower, upper, seqlen_k * 0, gl.cdiv(seqlen_k, k_desc.block_type.shape[-2]))
    work = Work(planes, gl.cdiv(seqlen_q, 2 * ROWS), section)
    factor = scale_log2 if softcap_log2 is None else 2 * softcap_log2
    rate = None if softcap_log2 is None else 2 * LOG2_E * (scale_log2 / softcap_log2)
    scoring = Scoring(factor, softcap_log2, rate, diagonal, slopes_ptr, slopes_head, None)

    q = make_tiles(q_desc, 2)
    out = make_tiles(out_desc, 2)
    q_full = make_barriers(2, 1)
    q_empty = make_barriers(2, 1)
    k = make_ring(k_desc, STAGES, 2)
    v = make_ring(v_desc, STAGES, 2)
    turn = make_barriers(2, 1)
    shared = Shared(q, q_full, k, v, out, turn)
    fence_async_shared()
    if PING_PONG:
        mbarrier.arrive(turn.index(0), count=1)
    gl.warp_specialize(
        [
            (_consumer, (
                shared, q_empty, work, keys, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, slopes_batch,
                seqlen_q, heads, group, 0, PING_PONG,
            )),
            (_consumer, (
                shared, q_empty, work, keys, packed, out_desc, sinks_ptr, lse_ptr, finite_ptr, scoring, slopes_batch,
                seqlen_q, heads, group, 1, PING_PONG,
            )),
            (_producer, (shared, q_empty, work, keys, q_desc, k_desc, v_desc, heads, group)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
