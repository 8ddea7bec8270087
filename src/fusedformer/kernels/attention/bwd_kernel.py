"""Attention backward on the device: what its kernels share, and the first of them.

    p = exp(s - lse)    dp = dO v^T    ds = p * (dp - delta)    delta = rowsum(dO * out) - dlse
    dv = p^T dO         dk = scale * ds^T q                     dq = scale * ds k

Dropout multiplies p in dv, and dp, by 0 or 1 / (1 - dropout_p); a softcap multiplies ds in dq and dk by its derivative.
dq: bwd_dq_kernel.py; dk and dv: bwd_dkdv_kernel.py; the bias: bwd_bias_kernel.py. The scores are computed in each of
them, which is the price of sums that no two programs share. Legend and rules: tiles.py; scores: scores.py.
Source: Dao, "FlashAttention-2", 2023, algorithm 2.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.scores import factor, kept, score, sees
from fusedformer.kernels.attention.tiles import INF, LOG2_E, head_ptr, load_rows
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
