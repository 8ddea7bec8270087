"""Attention in Triton as the paper's algorithms read, with fixed tiles and nothing tuned: a yardstick, not a product.

Legend: S queries and keys, H query heads, K key heads, D head dimension; L log-sum-exp of a row in base 2.
FLOPs: forward 4 S S D a head, backward 14, half of it when causal: QK^T and dP are computed for dQ and for dK, dV.
Source: Dao, "FlashAttention-2", 2023, algorithms 1 and 2; dQ has a pass of its own in place of atomic additions.
"""

import triton
import triton.language as tl


@triton.jit
def _place(base, head, S, rows, cols, H: tl.constexpr, D: tl.constexpr):
    """Where rows of one head of a (B, S, H, D) tensor are; `head` counts over the batch."""
    start = (head // H).to(tl.int64) * S * H * D + (head % H) * D
    return base + start + rows[:, None].to(tl.int64) * H * D + cols[None, :]


@triton.jit
def _seen(rows, cols, S, CAUSAL: tl.constexpr):
    inside = (rows[:, None] < S) & (cols[None, :] < S)
    if CAUSAL:
        inside = inside & (cols[None, :] <= rows[:, None])
    return inside


@triton.jit
def _dot(a, b, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # Triton's interpreter multiplies the bits of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def fwd_kernel(
    q_ptr, k_ptr, v_ptr,  # (B, S, H, D), (B, S, K, D), (B, S, K, D)
    out_ptr, lse_ptr,  # (B, S, H, D), (B, H, S) float32
    S, scale,  # the scale times log2(e)
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Algorithm 1: one block of queries of one head against all keys."""
    head = tl.program_id(1)
    key_head = head // H * K + head % H // (H // K)
    rows, dims = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < S) & (dims[None, :] < D)
    q = tl.load(_place(q_ptr, head, S, rows, dims, H, D), mask=inside, other=0.0)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = min(S, (tl.program_id(0) + 1) * BLOCK_M) if CAUSAL else S
    for start in range(0, end, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        held = (cols[:, None] < S) & (dims[None, :] < D)
        k = tl.load(_place(k_ptr, key_head, S, cols, dims, K, D), mask=held, other=0.0)
        v = tl.load(_place(v_ptr, key_head, S, cols, dims, K, D), mask=held, other=0.0)
        s = tl.where(_seen(rows, cols, S, CAUSAL), _dot(q, tl.trans(k), INTERPRETED) * scale, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # rows past the end see nothing
        p = tl.exp2(s - m_safe[:, None])
        shrink = tl.exp2(m - m_safe)
        denominator = denominator * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + _dot(p.to(v.dtype), v, INTERPRETED)
        m = m_new
    acc = acc / tl.where(denominator == 0.0, 1.0, denominator)[:, None]
    tl.store(_place(out_ptr, head, S, rows, dims, H, D), acc.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + head.to(tl.int64) * S + rows, m + tl.log2(denominator), mask=rows < S)


@triton.jit
def bwd_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr,  # as above; dout like q
    lse_ptr, delta_ptr,  # (B, H, S) float32
    dk_ptr, dv_ptr,  # (B, S, K, D)
    S, scale, base_2,  # the scale, and that times log2(e)
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Algorithm 2 without dQ: one block of keys of one key head against all queries of its query heads."""
    key_head = tl.program_id(1)
    cols, dims = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    held = (cols[:, None] < S) & (dims[None, :] < D)
    k = tl.load(_place(k_ptr, key_head, S, cols, dims, K, D), mask=held, other=0.0)
    v = tl.load(_place(v_ptr, key_head, S, cols, dims, K, D), mask=held, other=0.0)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin = tl.program_id(0) * BLOCK_N // BLOCK_M * BLOCK_M if CAUSAL else 0
    for member in range(H // K):
        head = key_head // K * H + key_head % K * (H // K) + member
        for start in range(begin, S, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            inside = (rows[:, None] < S) & (dims[None, :] < D)
            q = tl.load(_place(q_ptr, head, S, rows, dims, H, D), mask=inside, other=0.0)
            dout = tl.load(_place(dout_ptr, head, S, rows, dims, H, D), mask=inside, other=0.0)
            lse = tl.load(lse_ptr + head.to(tl.int64) * S + rows, mask=rows < S, other=0.0)
            delta = tl.load(delta_ptr + head.to(tl.int64) * S + rows, mask=rows < S, other=0.0)
            s = _dot(q, tl.trans(k), INTERPRETED) * base_2
            p = tl.where(_seen(rows, cols, S, CAUSAL), tl.exp2(s - lse[:, None]), 0.0)
            dv += _dot(tl.trans(p.to(dout.dtype)), dout, INTERPRETED)
            dp = _dot(dout, tl.trans(v), INTERPRETED)
            ds = p * (dp - delta[:, None])
            dk += _dot(tl.trans(ds.to(q.dtype)), q, INTERPRETED)
    tl.store(_place(dk_ptr, key_head, S, cols, dims, K, D), (dk * scale).to(dk_ptr.dtype.element_ty), mask=held)
    tl.store(_place(dv_ptr, key_head, S, cols, dims, K, D), dv.to(dv_ptr.dtype.element_ty), mask=held)


@triton.jit
def bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr,  # as above; dq like q
    S, scale, base_2,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dQ of algorithm 2: one block of queries of one head against all keys."""
    head = tl.program_id(1)
    key_head = head // H * K + head % H // (H // K)
    rows, dims = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < S) & (dims[None, :] < D)
    q = tl.load(_place(q_ptr, head, S, rows, dims, H, D), mask=inside, other=0.0)
    dout = tl.load(_place(dout_ptr, head, S, rows, dims, H, D), mask=inside, other=0.0)
    lse = tl.load(lse_ptr + head.to(tl.int64) * S + rows, mask=rows < S, other=0.0)
    delta = tl.load(delta_ptr + head.to(tl.int64) * S + rows, mask=rows < S, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = min(S, (tl.program_id(0) + 1) * BLOCK_M) if CAUSAL else S
    for start in range(0, end, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        held = (cols[:, None] < S) & (dims[None, :] < D)
        k = tl.load(_place(k_ptr, key_head, S, cols, dims, K, D), mask=held, other=0.0)
        v = tl.load(_place(v_ptr, key_head, S, cols, dims, K, D), mask=held, other=0.0)
        s = _dot(q, tl.trans(k), INTERPRETED) * base_2
        p = tl.where(_seen(rows, cols, S, CAUSAL), tl.exp2(s - lse[:, None]), 0.0)
        ds = p * (_dot(dout, tl.trans(v), INTERPRETED) - delta[:, None])
        dq += _dot(ds.to(k.dtype), k, INTERPRETED)
    tl.store(_place(dq_ptr, head, S, rows, dims, H, D), (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)
