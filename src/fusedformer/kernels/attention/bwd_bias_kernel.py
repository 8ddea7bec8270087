"""The gradient of attention's bias: that of the scores, summed wherever the bias is broadcast.

Legend and rules: tiles.py; formulas: bwd_kernel.py. FLOPs: 2 B H Sq Sk (D + Dv). Memory: the
gradient once, and for each of its tiles the rows of Q, K, V and dO that met in it.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.bwd_kernel import weights_and_gradients
from fusedformer.kernels.attention.tiles import head_ptr, load_rows, scores_of
from fusedformer.kernels.triton_compat import device_function


@device_function
def _split(program, count, OWN: tl.constexpr):
    """Part of a dimension that is the program's, 0 where it takes all of it, and what remains of its number."""
    if OWN:
        return program % count, program // count
    else:
        return 0, program


@device_function
def _store_sums(
    dbias_ptr, total, batch, head, tile_m, tile_n, heads, seqlen_q, seqlen_k,
    PER_HEAD: tl.constexpr, PER_QUERY: tl.constexpr, PER_KEY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a tile, summed over the dimensions that are broadcast."""
    i = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    pair = tl.cast(batch, tl.int64) * (heads if PER_HEAD else 1) + head
    rows = pair * (seqlen_q if PER_QUERY else 1)
    width = seqlen_k if PER_KEY else 1
    if PER_QUERY and PER_KEY:
        ptrs = dbias_ptr + ((rows + i[:, None]) * width + j[None, :])
        tl.store(ptrs, total, mask=(i[:, None] < seqlen_q) & (j[None, :] < seqlen_k))
    elif PER_QUERY:
        tl.store(dbias_ptr + (rows + i), tl.sum(total, 1), mask=i < seqlen_q)
    elif PER_KEY:
        tl.store(dbias_ptr + (rows * width + j), tl.sum(total, 0), mask=j < seqlen_k)
    else:
        tl.store(dbias_ptr + rows, tl.sum(tl.sum(total, 1), 0))


@triton.jit(do_not_specialize=["batches", "heads", "group", "seqlen_q", "seqlen_k", "left", "right"])
def attention_bwd_bias_kernel(
    q_ptr,  # (B, Sq, H, D)
    k_ptr,  # (B, Sk, Hkv, D)
    v_ptr,  # (B, Sk, Hkv, Dv)
    scoring,  # Scoring
    dout_ptr,  # (B, Sq, H, Dv)
    delta_ptr,  # (B, H, Sq) float32, contiguous
    shift_ptr,  # (B, H, Sq) float32, contiguous
    dbias_ptr,  # (B or 1, H or 1, Sq or 1, Sk or 1) float32, contiguous
    batches,
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
    PER_BATCH: tl.constexpr,  # whether dbias has a batch dimension of its own; otherwise that of bias is 1
    PER_HEAD: tl.constexpr,
    PER_QUERY: tl.constexpr,
    PER_KEY: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr,  # the last query faces the last key
    EXACT: tl.constexpr,  # sums instead of matrix products
    PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program computes a tile of dbias, and in a dimension that is broadcast, all of it."""
    diagonal = seqlen_k - seqlen_q if BOTTOM_RIGHT else 0
    tiles_m = tl.cdiv(seqlen_q, BLOCK_M)
    tiles_n = tl.cdiv(seqlen_k, BLOCK_N)
    program = tl.program_id(0)
    own_n, program = _split(program, tiles_n, PER_KEY)
    own_m, program = _split(program, tiles_m, PER_QUERY)
    own_head, program = _split(program, heads, PER_HEAD)
    own_batch, program = _split(program, batches, PER_BATCH)

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    met_n = 1 if PER_KEY else tiles_n
    met_m = 1 if PER_QUERY else tiles_m
    met_heads = 1 if PER_HEAD else heads
    met_batches = 1 if PER_BATCH else batches
    for index in tl.range(0, met_n * met_m * met_heads * met_batches):
        start_n = (own_n + index % met_n) * BLOCK_N
        start_m = (own_m + index // met_n % met_m) * BLOCK_M
        head = (own_head + index // met_n // met_m % met_heads).to(tl.int64)
        batch = (own_batch + index // met_n // met_m // met_heads).to(tl.int64)
        i = start_m + tl.arange(0, BLOCK_M)[:, None]
        j = start_n + tl.arange(0, BLOCK_N)[None, :]
        q = load_rows(head_ptr(q_ptr, q_strides, batch, head, 0), q_strides, start_m, seqlen_q,
                      HEAD_DIM, BLOCK_M, BLOCK_D, True)  # fmt: skip
        k = load_rows(head_ptr(k_ptr, k_strides, batch, head // group, 0), k_strides, start_n, seqlen_k,
                      HEAD_DIM, BLOCK_N, BLOCK_D, True)  # fmt: skip
        v = load_rows(head_ptr(v_ptr, v_strides, batch, head // group, 0), v_strides, start_n, seqlen_k,
                      HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)  # fmt: skip
        dout = load_rows(head_ptr(dout_ptr, dout_strides, batch, head, 0), dout_strides, start_m, seqlen_q,
                         HEAD_DIM_V, BLOCK_M, BLOCK_DV, True)  # fmt: skip
        rows = start_m + tl.arange(0, BLOCK_M)
        offsets = (batch * heads + head) * seqlen_q + rows
        delta = tl.load(delta_ptr + offsets, mask=rows < seqlen_q, other=0.0)
        shift = tl.load(shift_ptr + offsets, mask=rows < seqlen_q, other=0.0)
        raw = scores_of(q, k, EXACT, PRECISION)
        dp = scores_of(dout, v, EXACT, PRECISION)
        _, dscores, _, _ = weights_and_gradients(
            raw, dp, delta[:, None], shift[:, None], i, j, batch, head, heads,
            seqlen_q, seqlen_k, diagonal, left, right, scoring, True,
        )  # fmt: skip
        total += dscores
    _store_sums(
        dbias_ptr, total, own_batch, own_head, own_m, own_n, heads, seqlen_q, seqlen_k,
        PER_HEAD, PER_QUERY, PER_KEY, BLOCK_M, BLOCK_N,
    )  # fmt: skip
