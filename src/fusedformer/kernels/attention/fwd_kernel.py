"""Attention forward on the device: out = softmax(score) v and the log-sum-exp of the scores, which stay on chip.

Legend and rules: tiles.py; scores: scores.py. FLOPs: 2 B H Sq Sk (D + Dv), half when causal.
Memory: Q, K, V and out once, and K and V again, through the L2 cache, for every further tile of queries.
Source: Dao, "FlashAttention-2", 2023, algorithm 1; Milakov, Gimelshein, "Online normalizer calculation for softmax",
2018; sinks: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2024.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.scores import factor, kept, score, sees
from fusedformer.kernels.attention.tiles import (
    INF,
    LN_2,
    LOG2_E,
    add_weighted,
    all_finite,
    head_ptr,
    key_range,
    load_rows,
    place,
    scores_of,
    store_rows,
    tile_around,
    tiles_around,
)
from fusedformer.kernels.triton_compat import device_function

LOWEST = tl.constexpr(-3.4028234663852886e38)


@device_function
def _fwd_tiles(
    acc, total, peak, q, k_ptr, v_ptr, batch, head, heads, start_m, first, last, gap_first, gap,
    seqlen_q, seqlen_k, diagonal, left, right, k_strides, v_strides, scoring,
    MASKED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take keys `first` to `last`, less a gap, into weighted sum, total weight and highest score of each query."""
    i = start_m + tl.arange(0, BLOCK_M)[:, None]
    for index in tl.range(0, tiles_around(first, last, gap, BLOCK_N)):
        start_n = tile_around(index, first, gap_first, gap, BLOCK_N)
        j = start_n + tl.arange(0, BLOCK_N)[None, :]
        k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        raw = scores_of(q, k, EXACT, PRECISION)
        scores, _ = score(raw, i, j, batch, head, seqlen_q, seqlen_k, diagonal, scoring)
        visible = True
        if MASKED:
            visible = sees(i, j, batch, head, seqlen_q, seqlen_k, diagonal, left, right, scoring)
            scores = tl.where(visible, scores, -INF)
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor(scoring))
        p = tl.exp2(scores * factor(scoring) - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if scoring.seed_ptr is not None:
            p = tl.where(kept(i, j, batch, head, heads, scoring), p, 0.0)
        v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, MASKED)
        acc = add_weighted(acc, p, v, visible, EXACT, PRECISION)
        peak = new_peak
    return acc, total, peak


@device_function
def _fwd_rows(
    start_m, q_ptr, k_ptr, v_ptr, scoring, sinks_ptr, out_ptr, lse_ptr, finite_ptr, batch, head, heads,
    seqlen_q, seqlen_k, diagonal, left, right, q_strides, k_strides, v_strides, out_strides,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_M queries of the head that the pointers are at, and at `finite_ptr` whether all of it is finite."""
    q = load_rows(q_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # Not -inf, for -inf - -inf is NaN: a query that sees no key keeps this peak, and a total of 0.
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    whole: tl.constexpr = scoring.mask_ptr is None and not EXACT
    first, last, all_first, all_last = key_range(
        start_m, seqlen_q, seqlen_k, diagonal, left, right, whole, BLOCK_M, BLOCK_N
    )
    if whole:
        acc, total, peak = _fwd_tiles(
            acc, total, peak, q, k_ptr, v_ptr, batch, head, heads, start_m, all_first, all_last, 0, 0,
            seqlen_q, seqlen_k, diagonal, left, right, k_strides, v_strides, scoring,
            False, False, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    acc, total, peak = _fwd_tiles(
        acc, total, peak, q, k_ptr, v_ptr, batch, head, heads, start_m, first, last, all_first, all_last - all_first,
        seqlen_q, seqlen_k, diagonal, left, right, k_strides, v_strides, scoring,
        True, EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
    )  # fmt: skip

    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head) * LOG2_E
        new_peak = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.exp2(sink - new_peak)
        acc = acc * shrink[:, None]
        peak = new_peak
    # A total of 0 with a key in sight: the scores are too large for float32 to tell apart. NaN says so, 0 would not.
    sees_none = (total == 0.0) & (peak == LOWEST)
    total = tl.where(total == 0.0, tl.where(sees_none, 1.0, float("nan")), total)
    out = acc / total[:, None]
    if scoring.seed_ptr is not None:
        out *= 1.0 / (1.0 - scoring.dropout_p)
    store_rows(out_ptr, out_strides, start_m, seqlen_q, out, HEAD_DIM_V, BLOCK_M, BLOCK_DV)
    if finite_ptr is not None:
        tl.store(finite_ptr + tl.program_id(0).to(tl.int64), all_finite(out).to(tl.int8))
    lse = tl.where(sees_none, -INF, (peak + tl.log2(total)) * LN_2)
    rows = (start_m + tl.arange(0, BLOCK_M)).to(tl.int64)
    tl.store(lse_ptr + rows, lse, mask=rows < seqlen_q)


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "left", "right"])
def attention_fwd_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, Dv)
    scoring,  # Scoring
    packing,  # Packing
    sinks_ptr,  # (H,) float32, or None
    out_ptr,  # (B, Sq, H, Dv)
    lse_ptr,  # (B, H, Sq) float32, its last dimension dense
    finite_ptr,  # (programs,) int8: whether its tile is finite; None where nothing is hidden
    heads,
    group,
    seqlen_q,
    seqlen_k,
    left,  # or None
    right,  # or None
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    lse_strides,
    BOTTOM_RIGHT: tl.constexpr,  # the last query faces the last key
    EXACT: tl.constexpr,  # sums that leave hidden products out instead of matrix products
    REPAIR: tl.constexpr,  # only of tiles that are not finite
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    TILE: tl.constexpr,  # queries of a program; BLOCK_M, but in a repair those of the first launch
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes TILE queries of one head."""
    batch, head, tile, first_q, seqlen_q, first_k, seqlen_k, diagonal = place(
        packing, seqlen_q, heads, seqlen_q, seqlen_k, BOTTOM_RIGHT, TILE
    )
    if batch < 0:
        return
    if REPAIR:
        if tl.load(finite_ptr + tl.program_id(0).to(tl.int64)) != 0:
            return
    start_m = (tl.cdiv(seqlen_q, TILE) - 1 - tile) * TILE  # last rows first: when causal, they take longest
    q_ptr = head_ptr(q_ptr, q_strides, batch, head, first_q)
    k_ptr = head_ptr(k_ptr, k_strides, batch, head // group, first_k)
    v_ptr = head_ptr(v_ptr, v_strides, batch, head // group, first_k)
    out_ptr = head_ptr(out_ptr, out_strides, batch, head, first_q)
    lse_ptr += batch * lse_strides[0] + head * lse_strides[1] + first_q
    if REPAIR:
        for part_m in tl.range(start_m, tl.minimum(start_m + TILE, seqlen_q), BLOCK_M):
            if not all_finite(load_rows(out_ptr, out_strides, part_m, seqlen_q, HEAD_DIM_V, BLOCK_M, BLOCK_DV, True)):
                _fwd_rows(
                    part_m, q_ptr, k_ptr, v_ptr, scoring, sinks_ptr, out_ptr, lse_ptr, None, batch, head, heads,
                    seqlen_q, seqlen_k, diagonal, left, right, q_strides, k_strides, v_strides, out_strides,
                    EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
                )  # fmt: skip
    else:
        _fwd_rows(
            start_m, q_ptr, k_ptr, v_ptr, scoring, sinks_ptr, out_ptr, lse_ptr, finite_ptr, batch, head, heads,
            seqlen_q, seqlen_k, diagonal, left, right, q_strides, k_strides, v_strides, out_strides,
            EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
