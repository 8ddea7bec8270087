"""Attention backward on the device: the gradients of fwd_kernel.py, from its inputs, outputs and log-sum-exp.

    p = exp(s - lse)    dp = dO v^T    ds = p * (dp - delta)    delta = rowsum(dO * out) - dlse
    dv = p^T dO         dk = scale * ds^T q                     dq = scale * ds k

Dropout multiplies p in dv, and dp, by 0 or 1 / (1 - dropout_p); a softcap multiplies ds in dq and dk by its derivative.
Legend and rules: tiles.py; scores: scores.py. FLOPs: dQ 2 B H Sq Sk (2 D + Dv), dK and dV
4 B H Sq Sk (D + Dv), half when causal; the scores are computed in both kernels, which is the price of sums that no two
programs share. Source: Dao, "FlashAttention-2", 2023, algorithm 2.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.scores import distance, factor, kept, score, sees
from fusedformer.kernels.attention.tiles import (
    INF,
    LOG2_E,
    add_weighted,
    all_finite,
    head_ptr,
    key_range,
    load_rows,
    place,
    query_range,
    scores_of,
    store_rows,
    tile_around,
    tiles_around,
)
from fusedformer.kernels.triton_compat import device_function


@triton.jit(do_not_specialize=["heads", "seqlen_q"])
def attention_bwd_rows_kernel(
    dout_ptr,  # (B, Sq, H, Dv)
    out_ptr,  # (B, Sq, H, Dv)
    lse_ptr,  # (B, H, Sq) float32, contiguous
    dlse_ptr,  # (B, H, Sq) float32, contiguous, or None
    delta_ptr,  # (B, H, Sq) float32, contiguous
    shift_ptr,  # (B, H, Sq) float32, contiguous: lse in base 2, and +inf for a query that sees no key
    heads,
    seqlen_q,
    dout_strides,
    out_strides,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """What the other kernels need of each query. One program computes BLOCK_M queries of one head, packed or not."""
    program = tl.program_id(0)
    tiles = tl.cdiv(seqlen_q, BLOCK_M)
    batch = (program // tiles // heads).to(tl.int64)
    head = (program // tiles % heads).to(tl.int64)
    start_m = program % tiles * BLOCK_M
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head, 0)
    out_ptr = head_ptr(out_ptr, out_strides, batch, head, 0)
    dout = load_rows(dout_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM_V, BLOCK_M, BLOCK_DV, True)
    out = load_rows(out_ptr, out_strides, start_m, seqlen_q, HEAD_DIM_V, BLOCK_M, BLOCK_DV, True)
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
def weights_and_gradients(
    raw, dp, delta, shift, i, j, batch, head, heads, seqlen_q, seqlen_k, diagonal, left, right, scoring,
    MASKED: tl.constexpr,
):  # fmt: skip
    """p as dv takes it, the gradient of the scores, that of the scaled products, and who sees whom."""
    scores, derivative = score(raw, i, j, batch, head, seqlen_q, seqlen_k, diagonal, scoring)
    p = tl.exp2(scores * factor(scoring) - shift)
    dropped = p
    if scoring.seed_ptr is not None:
        keep = kept(i, j, batch, head, heads, scoring)
        rescale = 1.0 / (1.0 - scoring.dropout_p)
        dropped = tl.where(keep, p * rescale, 0.0)
        dp = tl.where(keep, dp * rescale, 0.0)
    dscores = p * (dp - delta)
    visible = True
    if MASKED:
        visible = sees(i, j, batch, head, seqlen_q, seqlen_k, diagonal, left, right, scoring)
        dropped = tl.where(visible, dropped, 0.0)
        dscores = tl.where(visible, dscores, 0.0)
    return dropped, dscores, dscores * derivative, visible


@device_function
def _dq_tiles(
    dq, dslope, q, dout, delta, shift, k_ptr, v_ptr, batch, head, heads, start_m, first, last, gap_first, gap,
    seqlen_q, seqlen_k, diagonal, left, right, k_strides, v_strides, scoring,
    MASKED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take keys `first` to `last`, less a gap, into ds k, and into the gradient of the ALiBi slope by each query."""
    i = start_m + tl.arange(0, BLOCK_M)[:, None]
    for index in tl.range(0, tiles_around(first, last, gap, BLOCK_N)):
        start_n = tile_around(index, first, gap_first, gap, BLOCK_N)
        j = start_n + tl.arange(0, BLOCK_N)[None, :]
        k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, MASKED)
        v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, MASKED)
        raw = scores_of(q, k, EXACT, PRECISION)
        dp = scores_of(dout, v, EXACT, PRECISION)
        _, dscores, dproducts, visible = weights_and_gradients(
            raw, dp, delta[:, None], shift[:, None], i, j, batch, head, heads,
            seqlen_q, seqlen_k, diagonal, left, right, scoring, MASKED,
        )  # fmt: skip
        if scoring.slopes_ptr is not None:
            dslope -= tl.sum(dscores * distance(i, j, diagonal), 1)
        dq = add_weighted(dq, dproducts, k, visible, EXACT, PRECISION)
    return dq, dslope


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "left", "right"])
def attention_bwd_dq_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, Dv)
    scoring,  # Scoring
    packing,  # Packing
    dout_ptr,  # (B, Sq, H, Dv)
    delta_ptr,  # (B, H, Sq) float32, its last dimension dense
    shift_ptr,  # (B, H, Sq) float32, as delta
    dq_ptr,  # (B, Sq, H, D)
    dslopes_ptr,  # (B, H, Sq) float32, as delta: the gradient of the slope by each query; or None
    heads,
    group,
    seqlen_q,
    seqlen_k,
    left,  # or None
    right,  # or None
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    dq_strides,
    lse_strides,  # of (B, H, Sq) tensors
    BOTTOM_RIGHT: tl.constexpr,  # the last query faces the last key
    EXACT: tl.constexpr,  # sums that leave hidden products out instead of matrix products
    REPAIR: tl.constexpr,  # only of tiles that are not finite
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dQ of BLOCK_M queries of one head."""
    batch, head, tile, first_q, seqlen_q, first_k, seqlen_k, diagonal = place(
        packing, seqlen_q, heads, seqlen_q, seqlen_k, BOTTOM_RIGHT, BLOCK_M
    )
    if batch < 0:
        return
    start_m = (tl.cdiv(seqlen_q, BLOCK_M) - 1 - tile) * BLOCK_M  # last rows first: when causal, they take longest
    dq_ptr = head_ptr(dq_ptr, dq_strides, batch, head, first_q)
    if REPAIR:
        if all_finite(load_rows(dq_ptr, dq_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)):
            return
    q_ptr = head_ptr(q_ptr, q_strides, batch, head, first_q)
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head, first_q)
    k_ptr = head_ptr(k_ptr, k_strides, batch, head // group, first_k)
    v_ptr = head_ptr(v_ptr, v_strides, batch, head // group, first_k)
    q = load_rows(q_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    dout = load_rows(dout_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM_V, BLOCK_M, BLOCK_DV, True)
    rows = start_m + tl.arange(0, BLOCK_M)
    offsets = batch * lse_strides[0] + head * lse_strides[1] + first_q + rows
    delta = tl.load(delta_ptr + offsets, mask=rows < seqlen_q, other=0.0)
    shift = tl.load(shift_ptr + offsets, mask=rows < seqlen_q, other=0.0)

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dslope = tl.zeros([BLOCK_M], tl.float32)
    whole: tl.constexpr = scoring.mask_ptr is None and not EXACT
    first, last, all_first, all_last = key_range(
        start_m, seqlen_q, seqlen_k, diagonal, left, right, whole, BLOCK_M, BLOCK_N
    )
    if whole:
        dq, dslope = _dq_tiles(
            dq, dslope, q, dout, delta, shift, k_ptr, v_ptr, batch, head, heads, start_m, all_first, all_last, 0, 0,
            seqlen_q, seqlen_k, diagonal, left, right, k_strides, v_strides, scoring,
            False, False, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    dq, dslope = _dq_tiles(
        dq, dslope, q, dout, delta, shift, k_ptr, v_ptr, batch, head, heads, start_m,
        first, last, all_first, all_last - all_first,
        seqlen_q, seqlen_k, diagonal, left, right, k_strides, v_strides, scoring,
        True, EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_rows(dq_ptr, dq_strides, start_m, seqlen_q, dq * scoring.scale, HEAD_DIM, BLOCK_M, BLOCK_D)
    if dslopes_ptr is not None:
        tl.store(dslopes_ptr + offsets, dslope, mask=rows < seqlen_q)


@device_function
def _dkdv_tiles(
    dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, batch, first_head, heads, start_n, first, last, gap_first, gap,
    group, seqlen_q, seqlen_k, diagonal, left, right, q_strides, dout_strides, lse_strides, scoring,
    MASKED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Take queries `first` to `last`, less a gap, of each head of the group into ds^T q and p^T dO."""
    j = start_n + tl.arange(0, BLOCK_N)[:, None]
    tiles = tiles_around(first, last, gap, BLOCK_M)
    # One loop over all heads: loads stay ahead of the products from one head to the next.
    for index in tl.range(0, group * tiles):
        member = tl.cast(index // tiles, tl.int64)
        start_m = tile_around(index % tiles, first, gap_first, gap, BLOCK_M)
        i = start_m + tl.arange(0, BLOCK_M)[None, :]
        q_head_ptr = q_ptr + member * q_strides[2]
        dout_head_ptr = dout_ptr + member * dout_strides[2]
        q = load_rows(q_head_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, MASKED)
        dout = load_rows(dout_head_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM_V, BLOCK_M, BLOCK_DV, MASKED)
        rows = start_m + tl.arange(0, BLOCK_M)
        inside = rows < seqlen_q if MASKED else None
        delta = tl.load(delta_ptr + (member * lse_strides[1] + rows), mask=inside)
        shift = tl.load(shift_ptr + (member * lse_strides[1] + rows), mask=inside)
        raw = scores_of(k, q, EXACT, PRECISION)
        dp = scores_of(v, dout, EXACT, PRECISION)
        p, _, dproducts, visible = weights_and_gradients(
            raw, dp, delta[None, :], shift[None, :], i, j, batch, first_head + member, heads,
            seqlen_q, seqlen_k, diagonal, left, right, scoring, MASKED,
        )  # fmt: skip
        dv = add_weighted(dv, p, dout, visible, EXACT, PRECISION)
        dk = add_weighted(dk, dproducts, q, visible, EXACT, PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "left", "right"])
def attention_bwd_dkdv_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, Dv)
    scoring,  # Scoring
    packing,  # Packing
    dout_ptr,  # (B, Sq, H, Dv)
    delta_ptr,  # (B, H, Sq) float32, its last dimension dense
    shift_ptr,  # (B, H, Sq) float32, as delta
    dk_ptr,  # (B, Sk, Hkv, D)
    dv_ptr,  # (B, Sk, Hkv, Dv)
    heads,
    group,
    seqlen_q,
    seqlen_k,
    left,  # or None
    right,  # or None
    q_strides,
    k_strides,
    v_strides,
    dout_strides,
    dk_strides,
    dv_strides,
    lse_strides,  # of (B, H, Sq) tensors
    BOTTOM_RIGHT: tl.constexpr,  # the last query faces the last key
    EXACT: tl.constexpr,  # sums that leave hidden products out instead of matrix products
    REPAIR: tl.constexpr,  # only of tiles that are not finite
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dK and dV of BLOCK_N keys of one key head."""
    batch, kv_head, tile, first_q, seqlen_q, first_k, seqlen_k, diagonal = place(
        packing, seqlen_k, heads // group, seqlen_q, seqlen_k, BOTTOM_RIGHT, BLOCK_N
    )
    if batch < 0:
        return
    start_n = tile * BLOCK_N  # the first keys first: when causal, they take longest
    dk_ptr = head_ptr(dk_ptr, dk_strides, batch, kv_head, first_k)
    dv_ptr = head_ptr(dv_ptr, dv_strides, batch, kv_head, first_k)
    if REPAIR:
        dk = load_rows(dk_ptr, dk_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
        dv = load_rows(dv_ptr, dv_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)
        if all_finite(dk) & all_finite(dv):
            return
    k_ptr = head_ptr(k_ptr, k_strides, batch, kv_head, first_k)
    v_ptr = head_ptr(v_ptr, v_strides, batch, kv_head, first_k)
    k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)
    head = kv_head * group  # the first of those that share this key head
    q_ptr = head_ptr(q_ptr, q_strides, batch, head, first_q)
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head, first_q)
    delta_ptr += batch * lse_strides[0] + head * lse_strides[1] + first_q
    shift_ptr += batch * lse_strides[0] + head * lse_strides[1] + first_q

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    whole: tl.constexpr = scoring.mask_ptr is None and not EXACT
    first, last, all_first, all_last = query_range(
        start_n, seqlen_q, seqlen_k, diagonal, left, right, whole, BLOCK_M, BLOCK_N
    )
    if whole:
        dk, dv = _dkdv_tiles(
            dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, batch, head, heads, start_n, all_first, all_last, 0, 0,
            group, seqlen_q, seqlen_k, diagonal, left, right, q_strides, dout_strides, lse_strides, scoring,
            False, False, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    dk, dv = _dkdv_tiles(
        dk, dv, k, v, q_ptr, dout_ptr, delta_ptr, shift_ptr, batch, head, heads, start_n,
        first, last, all_first, all_last - all_first,
        group, seqlen_q, seqlen_k, diagonal, left, right, q_strides, dout_strides, lse_strides, scoring,
        True, EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_rows(dk_ptr, dk_strides, start_n, seqlen_k, dk * scoring.scale, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(dv_ptr, dv_strides, start_n, seqlen_k, dv, HEAD_DIM_V, BLOCK_N, BLOCK_DV)
