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
    all_finite,
    dot_visible,
    head_ptr,
    key_range,
    load_rows,
    locate,
    sees,
    store_rows,
)
from fusedformer.kernels.triton_compat import dot, narrow


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


@triton.jit
def _dq_tiles(
    dq, q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, first, last, seqlen_q, seqlen_k,
    k_strides, v_strides, mask_strides, scale, diagonal,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take keys `first` to `last` into ds k."""
    for start_n in tl.range(first, last, BLOCK_N):
        k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        p = tl.exp2(dot(q, tl.trans(k)) * (scale * LOG2_E) - shift[:, None])
        ds = p * (dot(dout, tl.trans(v)) - delta[:, None])
        if MASKED:
            rows = start_m + tl.arange(0, BLOCK_M)[:, None]
            cols = start_n + tl.arange(0, BLOCK_N)[None, :]
            visible = sees(rows, cols, seqlen_q, seqlen_k, mask_ptr, mask_strides, diagonal, CAUSAL)
            ds = tl.where(visible, ds, 0.0)
        if EXACT:
            dq = dot_visible(ds, k, visible, dq, BLOCK_N)
        else:
            dq = dot(narrow(ds, k.dtype), k, dq)
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
    diagonal,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dQ of BLOCK_M queries of one head."""
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    tile, batch, head = locate(tiles, heads)
    start_m = (tiles - 1 - tile) * BLOCK_M  # the last rows first: when causal, they take longest
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
    if mask_ptr is None:
        dq = _dq_tiles(
            dq, q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, 0, full, seqlen_q, seqlen_k,
            k_strides, v_strides, mask_strides, scale, diagonal,
            CAUSAL, False, False, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        full = 0
    dq = _dq_tiles(
        dq, q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, full, last, seqlen_q, seqlen_k,
        k_strides, v_strides, mask_strides, scale, diagonal,
        CAUSAL, True, False, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if not all_finite(dq):
        dq = _dq_tiles(
            tl.zeros_like(dq), q, dout, delta, shift, k_ptr, v_ptr, mask_ptr, start_m, 0, last, seqlen_q, seqlen_k,
            k_strides, v_strides, mask_strides, scale, diagonal,
            CAUSAL, True, True, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    dq_ptr = head_ptr(dq_ptr, dq_strides, batch, head)
    store_rows(dq_ptr, dq_strides, start_m, seqlen_q, dq * scale, HEAD_DIM, BLOCK_M, BLOCK_D)


@triton.jit
def _query_range(
    start_n, seqlen_q, seqlen_k, diagonal,
    CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(first tile in which a query sees a key, start and end of the tiles in which every query sees every key)."""
    first = 0
    full_first = 0
    full_last = seqlen_q // BLOCK_M * BLOCK_M
    if CAUSAL:
        first = tl.maximum(start_n - diagonal, 0) // BLOCK_M * BLOCK_M
        full_first = tl.cdiv(tl.maximum(start_n + BLOCK_N - 1 - diagonal, 0), BLOCK_M) * BLOCK_M
    if HAS_MASK or start_n + BLOCK_N > seqlen_k or full_last < full_first:
        full_first = first
        full_last = first
    return first, full_first, full_last


@triton.jit
def _dkdv_tiles(
    dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, start_n, first, last, gap_first, gap,
    seqlen_q, seqlen_k, q_strides, dout_strides, mask_strides, scale, diagonal,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take queries `first` to `last`, shifted by `gap` from `gap_first` on, into p^T dO and ds^T q."""
    for start in tl.range(first, last, BLOCK_M):
        start_m = start + tl.where(start >= gap_first, gap, 0)
        q = load_rows(q_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        dout = load_rows(dout_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        rows = start_m + tl.arange(0, BLOCK_M)
        if MASKED:
            delta = tl.load(delta_ptr + rows, mask=rows < seqlen_q, other=0.0)
            shift = tl.load(shift_ptr + rows, mask=rows < seqlen_q, other=0.0)
        else:
            delta = tl.load(delta_ptr + rows)
            shift = tl.load(shift_ptr + rows)
        p_T = tl.exp2(dot(k, tl.trans(q)) * (scale * LOG2_E) - shift[None, :])
        ds_T = p_T * (dot(v, tl.trans(dout)) - delta[None, :])
        if MASKED:
            cols = start_n + tl.arange(0, BLOCK_N)[:, None]
            visible_T = sees(rows[None, :], cols, seqlen_q, seqlen_k, mask_ptr, mask_strides, diagonal, CAUSAL)
            p_T = tl.where(visible_T, p_T, 0.0)
            ds_T = tl.where(visible_T, ds_T, 0.0)
        if EXACT:
            dv = dot_visible(p_T, dout, visible_T, dv, BLOCK_M)
            dk = dot_visible(ds_T, q, visible_T, dk, BLOCK_M)
        else:
            dv = dot(narrow(p_T, dout.dtype), dout, dv)
            dk = dot(narrow(ds_T, q.dtype), q, dk)
    return dk, dv


@triton.jit
def _dkdv_group(
    k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, batch, kv_head, heads, group, start_n, seqlen_q, seqlen_k,
    q_strides, dout_strides, mask_strides, scale, diagonal,
    CAUSAL: tl.constexpr, EXACT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk (without its scale) and dv of BLOCK_N keys, summed over the query heads that share them."""
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first, full_first, full_last = _query_range(
        start_n, seqlen_q, seqlen_k, diagonal, CAUSAL, mask_ptr is not None, BLOCK_M, BLOCK_N
    )
    gap = full_last - full_first
    for member in range(group):
        head = kv_head * group + member
        rows = (batch * heads + head) * seqlen_q
        head_mask_ptr = mask_ptr
        if mask_ptr is not None:
            head_mask_ptr += batch * mask_strides[0] + head * mask_strides[1]
        head_q_ptr = head_ptr(q_ptr, q_strides, batch, head)
        head_dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head)
        if mask_ptr is None:
            dk, dv = _dkdv_tiles(
                dk, dv, k, v, head_q_ptr, head_dout_ptr, delta_ptr + rows, shift_ptr + rows, head_mask_ptr,
                start_n, full_first, full_last, 0, 0, seqlen_q, seqlen_k,
                q_strides, dout_strides, mask_strides, scale, diagonal,
                CAUSAL, EXACT, EXACT, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        dk, dv = _dkdv_tiles(
            dk, dv, k, v, head_q_ptr, head_dout_ptr, delta_ptr + rows, shift_ptr + rows, head_mask_ptr,
            start_n, first, seqlen_q - gap, full_first, gap, seqlen_q, seqlen_k,
            q_strides, dout_strides, mask_strides, scale, diagonal,
            CAUSAL, True, EXACT, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
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
    diagonal,
    CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dK and dV of BLOCK_N keys of one key head."""
    tile, batch, kv_head = locate(tl.cdiv(seqlen_k, BLOCK_N), heads // group)
    start_n = tile * BLOCK_N  # the first keys first: when causal, they take longest
    k_ptr = head_ptr(k_ptr, k_strides, batch, kv_head)
    v_ptr = head_ptr(v_ptr, v_strides, batch, kv_head)
    k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    dk, dv = _dkdv_group(
        k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, batch, kv_head, heads, group, start_n,
        seqlen_q, seqlen_k, q_strides, dout_strides, mask_strides, scale, diagonal,
        CAUSAL, False, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if not (all_finite(dk) and all_finite(dv)):
        dk, dv = _dkdv_group(
            k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, mask_ptr, batch, kv_head, heads, group, start_n,
            seqlen_q, seqlen_k, q_strides, dout_strides, mask_strides, scale, diagonal,
            CAUSAL, True, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    dk_ptr = head_ptr(dk_ptr, dk_strides, batch, kv_head)
    dv_ptr = head_ptr(dv_ptr, dv_strides, batch, kv_head)
    store_rows(dk_ptr, dk_strides, start_n, seqlen_k, dk * scale, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(dv_ptr, dv_strides, start_n, seqlen_k, dv, HEAD_DIM, BLOCK_N, BLOCK_D)
