"""Attention forward on the device: out = softmax(scale q k^T) v and the log-sum-exp of the scores, which stay on chip.

Legend and rules: attention_tiles.py. FLOPs: 4 B H Sq Sk D, half when causal. Memory: Q, K, V and out once, and K and V
again, through the L2 cache, for every further tile of queries.
Source: Dao, "FlashAttention-2", 2023, algorithm 1; Milakov, Gimelshein, "Online normalizer calculation for softmax",
2018.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention_tiles import (
    INF,
    LN_2,
    add_weighted,
    all_finite,
    head_ptr,
    key_range,
    load_rows,
    locate,
    scores_of,
    sees,
    store_rows,
)
from fusedformer.kernels.triton_compat import device_function

LOWEST = tl.constexpr(-3.4028234663852886e38)


@device_function
def _fwd_tiles(
    acc, total, peak, q, k_ptr, v_ptr, mask_ptr, start_m, first, last, seqlen_q, seqlen_k,
    k_strides, v_strides, mask_strides, scale_log2, diagonal,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take keys `first` to `last` into the weighted sum, the total weight and the highest score of each query."""
    for start_n in tl.range(first, last, BLOCK_N):
        k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        scores = scores_of(q, k, EXACT)
        visible = None
        if MASKED:
            rows = start_m + tl.arange(0, BLOCK_M)
            cols = start_n + tl.arange(0, BLOCK_N)
            visible = sees(rows, cols, seqlen_q, seqlen_k, mask_ptr, mask_strides, diagonal, CAUSAL)
            scores = tl.where(visible, scores, -INF)
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        p = tl.exp2(scores * scale_log2 - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        acc = add_weighted(acc, p, v, visible, EXACT)
        peak = new_peak
    return acc, total, peak


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "diagonal"])
def attention_fwd_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, D)
    mask_ptr,  # (B, H, Sq, Sk) uint8, or None
    out_ptr,  # (B, Sq, H, D)
    lse_ptr,  # (B, H, Sq) float32, contiguous
    heads,
    group,
    seqlen_q,
    seqlen_k,
    q_strides,
    k_strides,
    v_strides,
    mask_strides,
    out_strides,
    scale_log2,  # scale * log2(e); positive, so that the maximum commutes with it and a hidden score stays -inf
    diagonal,
    CAUSAL: tl.constexpr,
    EXACT: tl.constexpr,  # the second launch
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes BLOCK_M queries of one head."""
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    tile, batch, head = locate(tiles, heads)
    start_m = (tiles - 1 - tile) * BLOCK_M  # the last rows first: when causal, they take longest
    out_ptr = head_ptr(out_ptr, out_strides, batch, head)
    if EXACT:
        if all_finite(load_rows(out_ptr, out_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)):
            return
    k_ptr = head_ptr(k_ptr, k_strides, batch, head // group)
    v_ptr = head_ptr(v_ptr, v_strides, batch, head // group)
    if mask_ptr is not None:
        mask_ptr += batch * mask_strides[0] + head * mask_strides[1]
    q_ptr = head_ptr(q_ptr, q_strides, batch, head)
    q = load_rows(q_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # Not -inf, for -inf - -inf is NaN: a query that sees no key keeps this peak, and a total of 0.
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    full, last = key_range(start_m, seqlen_q, seqlen_k, diagonal, CAUSAL, BLOCK_M, BLOCK_N)
    if mask_ptr is not None or EXACT:
        full = 0
    else:
        acc, total, peak = _fwd_tiles(
            acc, total, peak, q, k_ptr, v_ptr, mask_ptr, start_m, 0, full, seqlen_q, seqlen_k,
            k_strides, v_strides, mask_strides, scale_log2, diagonal,
            CAUSAL, False, False, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    acc, total, peak = _fwd_tiles(
        acc, total, peak, q, k_ptr, v_ptr, mask_ptr, start_m, full, last, seqlen_q, seqlen_k,
        k_strides, v_strides, mask_strides, scale_log2, diagonal,
        CAUSAL, True, EXACT, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
    )  # fmt: skip

    # A total of 0 with a key in sight: the scores are too large for float32 to tell apart. NaN says so, 0 would not.
    sees_none = (total == 0.0) & (peak == LOWEST)
    total = tl.where(total == 0.0, tl.where(sees_none, 1.0, float("nan")), total)
    store_rows(out_ptr, out_strides, start_m, seqlen_q, acc / total[:, None], HEAD_DIM, BLOCK_M, BLOCK_D)
    lse = tl.where(sees_none, -INF, (peak + tl.log2(total)) * LN_2)
    rows = start_m + tl.arange(0, BLOCK_M)
    tl.store(lse_ptr + ((batch * heads + head) * seqlen_q + rows), lse, mask=rows < seqlen_q)
