"""What the attention kernels share: tiles in and out, who sees whom, and a product that no hidden NaN can enter.

Legend of all Triton attention code: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads (each
serves `group` query heads), D head dimension; BLOCK_M queries by BLOCK_N keys are one tile of scores; BLOCK_D is D
rounded up to a power of two. `TAIL` and `MASKED` say that a tile may reach past the end, or hold hidden scores.

- Scores are in base 2: q k^T * scale * log2(e), so that their exponential is one multiply-add and one exp2.
- Kernels walk first over the tiles in which every query sees every key, with no mask in sight, then over the others.
- No atomics: each sum is taken by one program in one order, so results repeat bit for bit.
- Hidden values do not leak, not even NaN. A hidden weight is an exact 0, but 0 * NaN is NaN: where anything is hidden,
  a second launch (`EXACT`) computes each tile that is not finite again, by sums that leave hidden products out instead
  of matrix products. A leak cannot pass unseen, since a sum that holds NaN is never finite.
- Offsets are 64-bit, and every stride may have any value.
"""

import triton.language as tl

from fusedformer.kernels.triton_compat import device_function, dot, narrow

INF = tl.constexpr(float("inf"))
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@device_function
def locate(tiles, heads):
    """Tile, batch and head of this program; tiles of one head are neighbours, to share its K and V in the L2 cache."""
    program = tl.program_id(0)
    head = program // tiles
    return program % tiles, (head // heads).to(tl.int64), (head % heads).to(tl.int64)


@device_function
def head_ptr(ptr, strides, batch, head):
    """Where one head of a (B, S, H, D) tensor begins."""
    return ptr + batch * strides[0] + head * strides[2]


@device_function
def _row_ptrs(ptr, strides, start, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = (start + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    dims = tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
    return ptr + (rows * strides[1] + dims * strides[3])


@device_function
def _inside(start, length, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr):
    inside = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    if TAIL:
        inside = inside & (start + tl.arange(0, BLOCK)[:, None] < length)
    return inside


@device_function
def load_rows(
    ptr, strides, start, length,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Rows `start` to `start + BLOCK` of one head, (BLOCK, BLOCK_D), with zeros where the tensor has ended."""
    ptrs = _row_ptrs(ptr, strides, start, BLOCK, BLOCK_D)
    if TAIL or HEAD_DIM < BLOCK_D:
        return tl.load(ptrs, mask=_inside(start, length, HEAD_DIM, BLOCK, BLOCK_D, TAIL), other=0.0)
    return tl.load(ptrs)


@device_function
def store_rows(
    ptr, strides, start, length, rows,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Round `rows` to the tensor's dtype and write those that exist."""
    inside = _inside(start, length, HEAD_DIM, BLOCK, BLOCK_D, True)
    tl.store(_row_ptrs(ptr, strides, start, BLOCK, BLOCK_D), narrow(rows, ptr.dtype.element_ty), mask=inside)


@device_function
def sees(rows, cols, seqlen_q, seqlen_k, mask_ptr, mask_strides, diagonal, CAUSAL: tl.constexpr):
    """Which of the queries `rows` (m) see which of the keys `cols` (n): (m, n)."""
    rows = rows[:, None]
    cols = cols[None, :]
    visible = (rows < seqlen_q) & (cols < seqlen_k)
    if CAUSAL:
        visible = visible & (cols <= rows + diagonal)
    if mask_ptr is not None:
        ptrs = mask_ptr + (rows.to(tl.int64) * mask_strides[2] + cols.to(tl.int64) * mask_strides[3])
        visible = visible & (tl.load(ptrs, mask=visible, other=0) != 0)
    return visible


@device_function
def key_range(
    start_m, seqlen_q, seqlen_k, diagonal,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(end of the whole tiles of keys that all queries of a tile see, end of the keys that any of them sees)."""
    all_see = seqlen_k
    any_sees = seqlen_k
    if CAUSAL:
        all_see = tl.minimum(seqlen_k, start_m + diagonal + 1)
        any_sees = tl.minimum(seqlen_k, tl.minimum(start_m + BLOCK_M, seqlen_q) + diagonal)
    return tl.maximum(all_see, 0) // BLOCK_N * BLOCK_N, tl.maximum(any_sees, 0)


@device_function
def all_finite(x):
    """Whether no element of a two-dimensional tile is NaN or infinite."""
    is_finite = tl.abs(x.to(tl.float32)) < INF
    return tl.min(is_finite.to(tl.int32)) == 1


@device_function
def scores_of(a, b, EXACT: tl.constexpr):
    """a @ b^T in float32: how well each row of `a` (m, D) fits each of `b` (n, D)."""
    if EXACT:
        return tl.sum(a[:, None, :].to(tl.float32) * b[None, :, :].to(tl.float32), 2)
    else:  # without it, the compiler would go on to the product, and refuse its sizes
        return dot(a, tl.trans(b))


@device_function
def add_weighted(acc, weights, values, visible, EXACT: tl.constexpr):
    """acc + weights @ values; a hidden weight is an exact 0, and with `EXACT` hides even a value that is NaN."""
    if EXACT:
        products = weights[:, :, None] * values[None, :, :].to(tl.float32)
        return acc + tl.sum(tl.where(visible[:, :, None], products, 0.0), 1)
    else:
        return dot(narrow(weights, values.dtype), values, acc)
