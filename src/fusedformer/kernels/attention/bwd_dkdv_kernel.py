"""Attention backward on the device, the gradients of k and v: dk = scale * ds^T q and dv = p^T dO.

Formulas: bwd_kernel.py; legend and rules: tiles.py. FLOPs: 4 B H Sq Sk (D + Dv), half when causal. Memory: K, V, dK and
dV once, Q and dO of all query heads of a group once for every tile of keys.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.bwd_kernel import weights_and_gradients
from fusedformer.kernels.attention.tiles import (
    add_weighted,
    all_finite,
    head_ptr,
    load_rows,
    place,
    query_range,
    scores_of,
    store_rows,
    tile_around,
    tiles_around,
)
from fusedformer.kernels.triton_compat import device_function


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


@device_function
def _dkdv_rows(
    start_n, q_ptr, k_ptr, v_ptr, scoring, dout_ptr, delta_ptr, shift_ptr, dk_ptr, dv_ptr, finite_ptr,
    batch, head, heads, group, seqlen_q, seqlen_k, diagonal, left, right,
    q_strides, k_strides, v_strides, dout_strides, dk_strides, dv_strides, lse_strides,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write dK and dV of BLOCK_N keys of the head that the pointers are at, and whether all of them are finite."""
    k = load_rows(k_ptr, k_strides, start_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
    v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)
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
    dk *= scoring.scale
    store_rows(dk_ptr, dk_strides, start_n, seqlen_k, dk, HEAD_DIM, BLOCK_N, BLOCK_D)
    store_rows(dv_ptr, dv_strides, start_n, seqlen_k, dv, HEAD_DIM_V, BLOCK_N, BLOCK_DV)
    if finite_ptr is not None:
        tl.store(finite_ptr + tl.program_id(0).to(tl.int64), (all_finite(dk) & all_finite(dv)).to(tl.int8))


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
    TILE: tl.constexpr,  # keys of a program; BLOCK_N, but in a repair those of the first launch
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes dK and dV of TILE keys of one key head."""
    batch, kv_head, tile, first_q, seqlen_q, first_k, seqlen_k, diagonal = place(
        packing, seqlen_k, heads // group, seqlen_q, seqlen_k, BOTTOM_RIGHT, TILE
    )
    if batch < 0:
        return
    if REPAIR:
        if tl.load(finite_ptr + tl.program_id(0).to(tl.int64)) != 0:
            return
    start_n = tile * TILE  # the first keys first: when causal, they take longest
    k_ptr = head_ptr(k_ptr, k_strides, batch, kv_head, first_k)
    v_ptr = head_ptr(v_ptr, v_strides, batch, kv_head, first_k)
    dk_ptr = head_ptr(dk_ptr, dk_strides, batch, kv_head, first_k)
    dv_ptr = head_ptr(dv_ptr, dv_strides, batch, kv_head, first_k)
    head = kv_head * group  # the first of those that share this key head
    q_ptr = head_ptr(q_ptr, q_strides, batch, head, first_q)
    dout_ptr = head_ptr(dout_ptr, dout_strides, batch, head, first_q)
    delta_ptr += batch * lse_strides[0] + head * lse_strides[1] + first_q
    shift_ptr += batch * lse_strides[0] + head * lse_strides[1] + first_q
    if REPAIR:
        for part_n in tl.range(start_n, tl.minimum(start_n + TILE, seqlen_k), BLOCK_N):
            dk = load_rows(dk_ptr, dk_strides, part_n, seqlen_k, HEAD_DIM, BLOCK_N, BLOCK_D, True)
            dv = load_rows(dv_ptr, dv_strides, part_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)
            if not (all_finite(dk) & all_finite(dv)):
                _dkdv_rows(
                    part_n, q_ptr, k_ptr, v_ptr, scoring, dout_ptr, delta_ptr, shift_ptr, dk_ptr, dv_ptr, None,
                    batch, head, heads, group, seqlen_q, seqlen_k, diagonal, left, right,
                    q_strides, k_strides, v_strides, dout_strides, dk_strides, dv_strides, lse_strides,
                    EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
                )  # fmt: skip
    else:
        _dkdv_rows(
            start_n, q_ptr, k_ptr, v_ptr, scoring, dout_ptr, delta_ptr, shift_ptr, dk_ptr, dv_ptr, finite_ptr,
            batch, head, heads, group, seqlen_q, seqlen_k, diagonal, left, right,
            q_strides, k_strides, v_strides, dout_strides, dk_strides, dv_strides, lse_strides,
            EXACT, PRECISION, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
