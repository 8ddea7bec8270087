"""Attention forward in float8 (e4m3) for Hopper: as fwd_kernel.py, with products of 8 bits at twice the rate.

What is different:

- Both operands of a product of 8 bits lie in memory with the summed dimension dense, so that values come transposed,
  by tiles: ../fp8/values_kernel.py makes them so.
- Two keys of a thread's scores lie side by side, but four of the weights that it gives to the tensor core. A sum over
  keys may take them in any order, so weights change places within 16 keys, from [2, 4, 2] to [4, 2, 2], which moves
  nothing between threads, and values_kernel.py gives values the same order.
- Weights are up to 2^8, not 1: e4m3 ends at 448, and below 2^-6 its steps grow coarse, at 2^-10 to 0. A weight smaller
  than the largest by 2^18 or more is lost. The sum of weights has the same factor, so nothing has to be undone.
- The tensor core adds products of 8 bits with 14 bits or so, and cuts off what is below: over many tiles the loss would
  add up. So it adds up within a tile, and registers the tiles, in the multiply-add that shrinks the sum before it: no
  instruction more, but two sums of 64 x Dv, which is why Dv ends at 128.

Legend, rings and ragged edges: ring.py. FLOPs: as fwd_kernel.py. Memory: half of its reads, and one more pass over v.
Source: Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024; precision
of sums: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2.
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
    release,
    tile_of,
    visible_keys,
    visited_tiles,
    whole_tiles,
)
from fusedformer.kernels.gluon_compat import async_load, async_store

LOWEST = gl.constexpr(-3.4028234663852886e38)
LARGEST_LOG2 = gl.constexpr(8.0)  # of a weight
# Four neighbours to one register: Triton's own conversion takes them apart again, five instructions for each pair.
TO_E4M3 = gl.constexpr(
    "{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;"
    " mov.b32 $0, {low, high}; }"
)


class Shared(NamedTuple):
    """What the warps of a program share."""

    q: Any  # (2, 1, 1, 64, D): a tile for each consumer
    q_full: Any  # (2, 1) mbarriers
    k: Any  # Ring of (BLOCK_N, D)
    v: Any  # Ring of (Dv, BLOCK_N)
    out: Any  # (2, 1, 1, 64, Dv)
    turn: Any  # (2, 1) mbarriers: this consumer may issue products


class Sums(NamedTuple):
    """Of 64 queries: what the tiles before have added up to."""

    acc: Any  # (64, Dv): weighted values, but for those of the last tile
    shrink: Any  # (64,): what acc has yet to be multiplied by
    peak: Any  # (64,): base-2 logarithm by which weights are divided
    total: Any  # (64,): weights


@gluon.jit
def _softmax(s, sums, i, t, sight, scale_log2, MASKED: gl.constexpr, layout: gl.constexpr):
    """The weights of one tile, and the sums with it, but for acc."""
    if MASKED:
        s = gl.where(visible_keys(i, t, sight, s.shape[1], layout), s, -INF)
    peak = gl.maximum(sums.peak, gl.max(s, 1) * scale_log2 - LARGEST_LOG2)
    p = gl.exp2(s * scale_log2 - gl.expand_dims(peak, 1))
    shrink = gl.exp2(sums.peak - peak)
    return p, Sums(sums.acc, shrink, peak, sums.total * shrink + gl.sum(p, 1))


@gluon.jit
def _packed(p):
    """(64, BLOCK_N) weights as (64, BLOCK_N / 4) words of four, in the order of keys that values have."""
    BLOCK_N: gl.constexpr = p.shape[1]
    p = gl.permute(gl.reshape(p, [ROWS, BLOCK_N // 16, 2, 4, 2]), [0, 1, 3, 2, 4])
    even, odd = gl.split(p)
    even_low, even_high = gl.split(even)
    odd_low, odd_high = gl.split(odd)
    words = gl.inline_asm_elementwise(
        TO_E4M3, "=r,r,r,r,r", [even_low, odd_low, even_high, odd_high], dtype=gl.int32, is_pure=False, pack=1
    )
    return gl.reshape(words, [ROWS, BLOCK_N // 4])


@gluon.jit
def _unpacked(words, dtype: gl.constexpr, out_layout: gl.constexpr):
    """Weights out of words of four, as the first operand of a product."""
    BLOCK_N: gl.constexpr = 4 * words.shape[1]
    low = gl.join(words.to(gl.int8), (words >> 8).to(gl.int8))
    high = gl.join((words >> 16).to(gl.int8), (words >> 24).to(gl.int8))
    p = gl.permute(gl.join(low, high), [0, 1, 3, 2])
    p = gl.reshape(p, [ROWS, BLOCK_N]).to(dtype, bitcast=True)
    return gl.convert_layout(p, gl.DotOperandLayout(0, out_layout, 4), assert_trivial=True)


@gluon.jit
def _add(sums, weighted, layout: gl.constexpr):
    """The sum of weighted values with those of one more tile."""
    shrink = gl.convert_layout(sums.shrink, gl.SliceLayout(1, layout))
    return sums.acc * gl.expand_dims(shrink, 1) + weighted


@gluon.jit
def _scores(q, shared, t, layout: gl.constexpr):
    """Issue the product of queries and the keys of tile t."""
    zero = gl.full([ROWS, shared.k.tiles.shape[3]], 0.0, gl.float32, layout)
    return warpgroup_mma(q, tile_of(shared.k, t).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _weighted(p, shared, t, layout: gl.constexpr):
    """Issue the product of weights and the values of tile t."""
    zero = gl.full([ROWS, shared.v.tiles.shape[3]], 0.0, gl.float32, layout)
    p = _unpacked(p, shared.v.tiles.dtype, layout)
    return warpgroup_mma(p, tile_of(shared.v, t).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _step(
    t, sums, p, q, shared, sight, i, scale_log2,
    wid: gl.constexpr, MASKED: gl.constexpr, PING_PONG: gl.constexpr, s_layout: gl.constexpr, out_layout: gl.constexpr,
):  # fmt: skip
    """Scores and weights `p` of tile t, and the product of those of tile t - 1 with its values."""
    await_tile(shared.k, t)
    if PING_PONG:
        mbarrier.wait(shared.turn.index(wid), (t - 1) & 1)
    s = _scores(q, shared, t, s_layout)
    await_tile(shared.v, t - 1)
    weighted = _weighted(p, shared, t - 1, out_layout)
    if PING_PONG:
        mbarrier.arrive(shared.turn.index(1 - wid), count=1)
    s = warpgroup_mma_wait(1, [s])
    release(shared.k, t)
    p, after = _softmax(s, sums, i, t, sight, scale_log2, MASKED, s_layout)
    weighted = warpgroup_mma_wait(0, [weighted])
    release(shared.v, t - 1)
    acc = _add(sums, weighted, out_layout)
    return Sums(acc, after.shrink, after.peak, after.total), _packed(p)


@gluon.jit
def _consumer(
    shared, sight, out_desc, lse_ptr, scale_log2, descale_v, seqlen_q, heads, plane, start_m,
    wid: gl.constexpr, PING_PONG: gl.constexpr,
):  # fmt: skip
    """Computes 64 queries."""
    BLOCK_N: gl.constexpr = shared.k.tiles.shape[3]
    D: gl.constexpr = shared.q.shape[4]
    DV: gl.constexpr = shared.v.tiles.shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 32])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DV, 32])
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    start_m += wid * ROWS
    i = start_m + gl.arange(0, ROWS, row_layout)
    tiles = sight.tiles
    whole_first, whole_last = whole_tiles(start_m, sight, BLOCK_N, 1)
    acc = gl.full([ROWS, DV], 0.0, gl.float32, out_layout)
    none = gl.full([ROWS], 0.0, gl.float32, row_layout)
    # Not -inf, for -inf - -inf is NaN: a query that sees no key keeps this peak, and a total of 0.
    sums = Sums(acc, none, gl.full([ROWS], LOWEST, gl.float32, row_layout), none)

    q = shared.q.index(wid).reshape([ROWS, D])
    mbarrier.wait(shared.q_full.index(wid), 0)
    await_tile(shared.k, 0)
    s = warpgroup_mma_wait(0, [_scores(q, shared, 0, s_layout)])
    release(shared.k, 0)
    p, sums = _softmax(s, sums, i, 0, sight, scale_log2, True, s_layout)
    p = _packed(p)
    if sight.lower is not None:
        for t in range(1, whole_first):
            sums, p = _step(t, sums, p, q, shared, sight, i, scale_log2, wid, True, PING_PONG, s_layout, out_layout)
    for t in range(whole_first, whole_last):
        sums, p = _step(t, sums, p, q, shared, sight, i, scale_log2, wid, False, PING_PONG, s_layout, out_layout)
    for t in range(whole_last, tiles):
        sums, p = _step(t, sums, p, q, shared, sight, i, scale_log2, wid, True, PING_PONG, s_layout, out_layout)
    await_tile(shared.v, tiles - 1)
    weighted = warpgroup_mma_wait(0, [_weighted(p, shared, tiles - 1, out_layout)])
    acc = _add(sums, weighted, out_layout)

    # A total of 0 with a key in sight: the scores are too large for float32 to tell apart. NaN says so, 0 would not.
    sees_none = (sums.total == 0.0) & (sums.peak == LOWEST)
    total = gl.where(sums.total == 0.0, gl.where(sees_none, 1.0, float("nan")), sums.total)
    acc = acc * gl.expand_dims(gl.convert_layout(descale_v / total, gl.SliceLayout(1, out_layout)), 1)
    out = shared.out.index(wid)
    out.reshape([ROWS, DV]).store(acc.to(shared.out.dtype))
    fence_async_shared()
    async_store(out_desc, [plane // heads, plane % heads, start_m, 0], out)
    lse = gl.where(sees_none, -INF, (sums.peak + gl.log2(total)) * LN_2)
    gl.store(lse_ptr + (plane.to(gl.int64) * seqlen_q + i), lse, mask=i < seqlen_q)
    tma.store_wait(0)


@gluon.jit
def _producer(shared, sight, q_desc, k_desc, v_desc, heads, group, plane, start_m):
    """Loads what the consumers read."""
    batch = plane // heads
    head = plane % heads
    for wid in gl.static_range(2):
        mbarrier.expect(shared.q_full.index(wid), q_desc.block_type.nbytes)
        rows = start_m + wid * ROWS
        async_load(q_desc, [batch, head, rows, 0], shared.q_full.index(wid), shared.q.index(wid))
    for t in range(sight.tiles):
        tile = sight.first + t
        fill(shared.k, k_desc, batch, head // group, tile * k_desc.block_type.shape[2], t)
        fill(shared.v, v_desc, batch, head // group, tile * v_desc.block_type.shape[2], t)


@gluon.jit
def _descale(descale_ptr, place):
    """The number at a place of a tensor of scales; NaN if it is not positive."""
    descale = gl.load(descale_ptr + place)
    return gl.where(descale > 0.0, descale, float("nan"))


@gluon.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "diagonal", "left", "right"])
def attention_hopper_fwd_fp8_kernel(
    q_desc,  # (B, H, Sq, D) e4m3, tiles (1, 1, 64, D)
    k_desc,  # (B, Hkv, Sk, D) e4m3, tiles (1, 1, BLOCK_N, D)
    v_desc,  # (B, Hkv, tiles * Dv, BLOCK_N) e4m3, of values_kernel.py, tiles (1, 1, Dv, BLOCK_N)
    q_descale_ptr,  # (B, H) float32, contiguous
    k_descale_ptr,  # (B, Hkv) float32, contiguous
    v_descale_ptr,  # as k_descale_ptr
    out_desc,  # (B, H, Sq, Dv) bfloat16, tiles (1, 1, 64, Dv)
    lse_ptr,  # (B, H, Sq) float32, contiguous
    heads,
    group,
    seqlen_q,
    seqlen_k,
    diagonal,  # the key that query 0 faces
    left,  # or None
    right,  # or None
    scale_log2,  # scale * log2(e), positive
    STAGES: gl.constexpr,  # of the rings of keys and of values
    PING_PONG: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """One program computes 128 queries of one head."""
    BLOCK_N: gl.constexpr = k_desc.block_type.shape[2]
    tiles_m = gl.cdiv(seqlen_q, 2 * ROWS)
    plane = gl.program_id(0) // tiles_m
    start_m = (tiles_m - 1 - gl.program_id(0) % tiles_m) * (2 * ROWS)  # last rows first: when causal, they take longest
    lower = None if left is None else diagonal - left
    upper = None if right is None else diagonal + right + 1
    first, tiles = visited_tiles(start_m, seqlen_k, lower, upper, BLOCK_N)
    sight = Sight(seqlen_k, lower, upper, first, gl.maximum(tiles, 1))
    plane_k = plane // group
    scale_log2 *= _descale(q_descale_ptr, plane) * _descale(k_descale_ptr, plane_k)
    descale_v = _descale(v_descale_ptr, plane_k)

    q = make_tiles(q_desc, 2)
    out = make_tiles(out_desc, 2)
    q_full = make_barriers(2, 1)
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
                shared, sight, out_desc, lse_ptr, scale_log2, descale_v, seqlen_q, heads, plane, start_m, 0, PING_PONG,
            )),
            (_consumer, (
                shared, sight, out_desc, lse_ptr, scale_log2, descale_v, seqlen_q, heads, plane, start_m, 1, PING_PONG,
            )),
            (_producer, (shared, sight, q_desc, k_desc, v_desc, heads, group, plane, start_m)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
