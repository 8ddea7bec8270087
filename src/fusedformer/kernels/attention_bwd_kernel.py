"""Attention backward on the device: the gradients of attention_fwd_kernel.py, from its inputs, outputs and log-sum-exp.

    p = exp(s - lse)    dp = dO v^T    ds = p * (dp - delta)    delta = rowsum(dO * out) - dlse
    dv = p^T dO         dk = scale * ds^T q                     dq = scale * ds k

Legend and rules: attention_tiles.py. FLOPs: dQ 6 B H Sq Sk D, dK and dV 8, half when causal; the scores are computed in
both kernels, which is the price of sums that no two programs share.
Source: Dao, "FlashAttention-2", 2023, algorithm 2.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention_tiles import (
    INF,
    LOG2_E,
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


@triton.jit(do_not_specialize=["heads", "seqlen_q"])
def attention_bwd_rows_kernel(
    dout_ptr,  # (B, Sq, H, D)
    out_ptr,  # (B, Sq, H, D)
    lse_ptr,  # (B, H, Sq) float32, contiguous
    dlse_ptr,  # (B, H, Sq) float32, contiguous, or None
    delta_ptr,  # (B, H, Sq) float32, contiguous
    shift_ptr,  # (B, H, Sq) float32, contiguous: lse in base 2, and +inf for a query that sees no key
    heads,
    seqlen_q,
    dout_strides,
    out_strides,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What both gradient kernels need of each query. One program computes BLOCK_M queries of one head."""
    tile, batch, head = locate(tl.cdiv(seqlen_q, BLOCK_M), heads)
    start_m = tile * BLOCK_M
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head)
    out_ptr = head_ptr(out_ptr, out_strides, batch, head)
    dout = load_rows(dout_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    out = load_rows(out_ptr, out_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)

    rows = start_m + tl.arange(0, BLOCK_M)
    offsets = (batch * heads + head) * seqlen_q + rows
    inside = rows < seqlen_q
    lse = tl.load(lse_ptr + offsets, mask=inside, other=0.0)
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + offsets, mask=inside, other=0.0)
    tl.store(delta_ptr + offsets, delta, mask=inside)
    tl.store(shift_ptr + offsets, tl.where(lse == -INF, INF, lse * LOG2_E), mask=inside)


@device_function
def _dq_tiles(
    dq, q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, first, last, seqlen_q, seqlen_k,
    k_strides, v_strides, mask_strides, scale_log2, diagonal,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take keys `first` to `last` into ds k."""
    for start_n in tl.range(first, last, BLOCK_N):
        k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        p = tl.exp2(scores_of(q, k, EXACT) * scale_log2 - shift[:, None])
        visible = None
        ds = p * (scores_of(dout, v, EXACT) - delta[:, None])
        if MASKED:
            rows = start_m + tl.arange(0, BLOCK_M)
            cols = start_n + tl.arange(0, BLOCK_N)
            visible = sees(rows, cols, seqlen_q, seqlen_k, mask_ptr, mask_strides, diagonal, CAUSAL)
            ds = tl.where(visible, ds, 0.0)
        dq = add_weighted(dq, ds, k, visible, EXACT)
    return dq


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "diagonal"])
def attention_bwd_dq_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, D)
    mask_ptr,  # (B, H, Sq, Sk) uint8, or None
    dout_ptr,  # (B, Sq, H, D)
    delta_ptr,  # (B, H, Sq) float32, contiguous
    shift_ptr,  # (B, H, Sq) float32, contiguous
    dq_ptr,  # (B, Sq, H, D)
    heads,
    group,
    seqlen_q,
    seqlen_k,
    q_strides,
    k_strides,
    v_strides,
    mask_strides,
    dout_strides,
    dq_strides,
    scale,
    scale_log2,  # scale * log2(e), rounded as the forward has it
    diagonal,
    CAUSAL: tl.constexpr,
    EXACT: tl.constexpr,  # the second launch
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dQ of BLOCK_M queries of one head."""
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    tile, batch, head = locate(tiles, heads)
    start_m = (tiles - 1 - tile) * BLOCK_M  # the last rows first: when causal, they take longest
    dq_ptr = head_ptr(dq_ptr, dq_strides, batch, head)
    if EXACT:
        if all_finite(load_rows(dq_ptr, dq_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)):
            return
    k_ptr = head_ptr(k_ptr, k_strides, batch, head // group)
    v_ptr = head_ptr(v_ptr, v_strides, batch, head // group)
    if mask_ptr is not None:
        mask_ptr += batch * mask_strides[0] + head * mask_strides[1]
    q_ptr = head_ptr(q_ptr, q_strides, batch, head)
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head)
    q = load_rows(q_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    dout = load_rows(dout_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    rows = start_m + tl.arange(0, BLOCK_M)
    offsets = (batch * heads + head) * seqlen_q + rows
    delta = tl.load(delta_ptr + offsets, mask=rows < seqlen_q, other=0.0)
    shift = tl.load(shift_ptr + offsets, mask=rows < seqlen_q, other=0.0)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full, last = key_range(start_m, seqlen_q, seqlen_k, diagonal, CAUSAL, BLOCK_M, BLOCK_N)
    if mask_ptr is not None or EXACT:
        full = 0
    else:
        dq = _dq_tiles(
            dq, q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, 0, full, seqlen_q, seqlen_k,
            k_strides, v_strides, mask_strides, scale_log2, diagonal,
            CAUSAL, False, False, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    dq = _dq_tiles(
        dq, q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, full, last, seqlen_q, seqlen_k,
        k_strides, v_strides, mask_strides, scale_log2, diagonal,
        CAUSAL, True, EXACT, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_rows(dq_ptr, dq_strides, start_m, seqlen_q, dq * scale, HEAD_DIM, BLOCK_M, BLOCK_D)


@device_function
def _query_range(start_n, seqlen_q, diagonal, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(start of the first tile in which a query sees a key, start and end of those in which all see all)."""
    first = 0
    full_first = 0
    if CAUSAL:
        first = tl.maximum(start_n - diagonal, 0) // BLOCK_M * BLOCK_M
        full_first = tl.cdiv(tl.maximum(start_n + BLOCK_N - 1 - diagonal, 0), BLOCK_M) * BLOCK_M
    full_last = seqlen_q // BLOCK_M * BLOCK_M
    return first, full_first, tl.maximum(full_first, full_last)


@device_function
def _dkdv_tiles(
    dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, start_n, first, last, gap_first, gap,
    group, seqlen_q, seqlen_k, q_strides, dout_strides, mask_strides, scale_log2, diagonal,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take queries `first` to `last` of each head of the group into ds^T q and p^T dO, leaving out `gap` of them."""
    tiles = tl.cdiv(tl.maximum(last - gap - first, 0), BLOCK_M)
    # One loop over all heads: loads stay ahead of the products from one head to the next.
    for index in tl.range(0, group * tiles):
        member = tl.cast(index // tiles, tl.int64)
        start_m = first + index % tiles * BLOCK_M
        start_m += tl.where(start_m >= gap_first, gap, 0)
        q_head_ptr = q_ptr + member * q_strides[2]
        dout_head_ptr = dout_ptr + member * dout_strides[2]
        q = load_rows(q_head_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        dout = load_rows(dout_head_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        rows = start_m + tl.arange(0, BLOCK_M)
        inside = rows < seqlen_q if MASKED else None
        delta = tl.load(delta_ptr + (member * seqlen_q + rows), mask=inside)
        shift = tl.load(shift_ptr + (member * seqlen_q + rows), mask=inside)
        p_T = tl.exp2(scores_of(k, q, EXACT) * scale_log2 - shift[None, :])
        visible_T = None
        ds_T = p_T * (scores_of(v, dout, EXACT) - delta[None, :])
        if MASKED:
            cols = start_n + tl.arange(0, BLOCK_N)
            head_mask_ptr = mask_ptr if mask_ptr is None else mask_ptr + member * mask_strides[1]
            visible_T = tl.trans(sees(rows, cols, seqlen_q, seqlen_k, head_mask_ptr, mask_strides, diagonal, CAUSAL))
            p_T = tl.where(visible_T, p_T, 0.0)
            ds_T = tl.where(visible_T, ds_T, 0.0)
        dv = add_weighted(dv, p_T, dout, visible_T, EXACT)
        dk = add_weighted(dk, ds_T, q, visible_T, EXACT)
    return dk, dv


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "diagonal"])
def attention_bwd_dkdv_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, D)
    mask_ptr,  # (B, H, Sq, Sk) uint8, or None
    dout_ptr,  # (B, Sq, H, D)
    delta_ptr,  # (B, H, Sq) float32, contiguous
    shift_ptr,  # (B, H, Sq) float32, contiguous
    dk_ptr,  # (B, Sk, Hkv, D)
    dv_ptr,  # (B, Sk, Hkv, D)
    heads,
    group,
    seqlen_q,
    seqlen_k,
    q_strides,
    k_strides,
    v_strides,
    mask_strides,
    dout_strides,
    dk_strides,
    dv_strides,
    scale,
    scale_log2,  # scale * log2(e), rounded as the forward has it
    diagonal,
    CAUSAL: tl.constexpr,
    EXACT: tl.constexpr,  # the second launch
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dK and dV of BLOCK_N keys of one key head."""
    tile, batch, kv_head = locate(tl.cdiv(seqlen_k, BLOCK_N), heads // group)
    start_n = tile * BLOCK_N  # the first keys first: when causal, they take longest
    dk_ptr = head_ptr(dk_ptr, dk_strides, batch, kv_head)
    dv_ptr = head_ptr(dv_ptr, dv_strides, batch, kv_head)
    if EXACT:
        dk = load_rows(dk_ptr, dk_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
        dv = load_rows(dv_ptr, dv_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
        if all_finite(dk) & all_finite(dv):
            return
    k_ptr = head_ptr(k_ptr, k_strides, batch, kv_head)
    v_ptr = head_ptr(v_ptr, v_strides, batch, kv_head)
    k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    head = kv_head * group  # the first of those that share this key head
    q_ptr = head_ptr(q_ptr, q_strides, batch, head)
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head)
    delta_ptr += (batch * heads + head) * seqlen_q
    shift_ptr += (batch * heads + head) * seqlen_q
    if mask_ptr is not None:
        mask_ptr += batch * mask_strides[0] + head * mask_strides[1]

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first, full_first, full_last = _query_range(start_n, seqlen_q, diagonal, CAUSAL, BLOCK_M, BLOCK_N)
    if mask_ptr is not None or EXACT or start_n + BLOCK_N > seqlen_k:
        full_last = full_first
    if mask_ptr is None and not EXACT:
        dk, dv = _dkdv_tiles(
            dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, start_n, full_first, full_last, 0, 0,
            group, seqlen_q, seqlen_k, q_strides, dout_strides, mask_strides, scale_log2, diagonal,
            CAUSAL, False, False, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    dk, dv = _dkdv_tiles(
        dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, start_n, first, seqlen_q,
        full_first, full_last - full_first,
        group, seqlen_q, seqlen_k, q_strides, dout_strides, mask_strides, scale_log2, diagonal,
        CAUSAL, True, EXACT, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_rows(dk_ptr, dk_strides, start_n, seqlen_k, dk * scale, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(dv_ptr, dv_strides, start_n, seqlen_k, dv, HEAD_DIM, BLOCK_N, BLOCK_D)
