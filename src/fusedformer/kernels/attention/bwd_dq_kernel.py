"""Attention backward on the device, the gradient of q: dq = scale * ds k, and that of the ALiBi slopes.

Formulas: bwd_kernel.py; legend and rules: tiles.py. FLOPs: 2 B H Sq Sk (2 D + Dv), half when causal. Memory: Q, dO and
dQ once, K and V once for every tile of queries.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.bwd_kernel import weights_and_gradients
from fusedformer.kernels.attention.scores import distance
from fusedformer.kernels.attention.tiles import (
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


@device_function
def _dq_rows(
    start_m, q_ptr, k_ptr, v_ptr, scoring, dout_ptr, delta_ptr, shift_ptr, dq_ptr, dslopes_ptr, finite_ptr,
    batch, head, heads, seqlen_q, seqlen_k, diagonal, left, right,
    q_strides, k_strides, v_strides, dout_strides, dq_strides,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write dQ of BLOCK_M queries of the head that the pointers are at, and whether all of it is finite."""
    q = load_rows(q_ptr, q_strides, start_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)
    dout = load_rows(dout_ptr, dout_strides, start_m, seqlen_q, HEAD_DIM_V, BLOCK_M, BLOCK_DV, True)
    rows = (start_m + tl.arange(0, BLOCK_M)).to(tl.int64)
    delta = tl.load(delta_ptr + rows, mask=rows < seqlen_q, other=0.0)
    shift = tl.load(shift_ptr + rows, mask=rows < seqlen_q, other=0.0)

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
    dq *= scoring.scale
    store_rows(dq_ptr, dq_strides, start_m, seqlen_q, dq, HEAD_DIM, BLOCK_M, BLOCK_D)
    if finite_ptr is not None:
        tl.store(finite_ptr + tl.program_id(0).to(tl.int64), all_finite(dq).to(tl.int8))
    if dslopes_ptr is not None:
        tl.store(dslopes_ptr + rows, dslope, mask=rows < seqlen_q)


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
    TILE: tl.constexpr,  # queries of a program; BLOCK_M, but in a repair those of the first launch
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dQ of TILE queries of one head."""
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
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head, first_q)
    dq_ptr = head_ptr(dq_ptr, dq_strides, batch, head, first_q)
    offset = batch * lse_strides[0] + head * lse_strides[1] + first_q
    delta_ptr += offset
    shift_ptr += offset
    if dslopes_ptr is not None:
        dslopes_ptr += offset
    if REPAIR:
        for part_m in tl.range(start_m, tl.minimum(start_m + TILE, seqlen_q), BLOCK_M):
            if not all_finite(load_rows(dq_ptr, dq_strides, part_m, seqlen_q, HEAD_DIM, BLOCK_M, BLOCK_D, True)):
                _dq_rows(
                    part_m, q_ptr, k_ptr, v_ptr, scoring, dout_ptr, delta_ptr, shift_ptr, dq_ptr, dslopes_ptr, None,
                    batch, head, heads, seqlen_q, seqlen_k, diagonal, left, right,
                    q_strides, k_strides, v_strides, dout_strides, dq_strides,
                    EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
                )  # fmt: skip
    else:
        _dq_rows(
            start_m, q_ptr, k_ptr, v_ptr, scoring, dout_ptr, delta_ptr, shift_ptr, dq_ptr, dslopes_ptr, finite_ptr,
            batch, head, heads, seqlen_q, seqlen_k, diagonal, left, right,
            q_strides, k_strides, v_strides, dout_strides, dq_strides,
            EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
