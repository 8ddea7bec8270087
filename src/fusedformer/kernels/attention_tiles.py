"""What the attention kernels share: reading and writing tiles, who sees whom, and a product that hidden NaN cannot enter.

Legend of all Triton attention code: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads (each
serves `group` query heads), D head dimension; BLOCK_M queries by BLOCK_N keys are one tile of scores; BLOCK_D is D
rounded up to a power of two. `TAIL` and `MASKED` say that a tile may reach past the end, or hold hidden scores.

- Scores are in base 2: q k^T * scale * log2(e), so that their exponential is one multiply-add and one exp2.
- Kernels walk first over the tiles in which every query sees every key, with no mask in sight, then over the others.
- No atomics: each sum is taken by one program in one order, so results repeat bit for bit.
- Hidden values do not leak, not even NaN. A hidden weight is an exact 0, but 0 * NaN is NaN: a program whose sums are
  not finite takes them again by `dot_visible`. A leak cannot hide, since a sum that holds NaN is never finite.
- Offsets are 64-bit, and every stride may have any value.
"""

import triton
import triton.language as tl

from fusedformer.kernels.triton_compat import dot, narrow

INF = tl.constexpr(float("inf"))
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def locate(tiles, heads):
    """Tile, batch and head of this program. Tiles of one head are neighbours: they share its K and V in the L2 cache."""
    program = tl.program_id(0)
    head = program // tiles
    return program % tiles, (head // heads).to(tl.int64), (head % heads).to(tl.int64)


@triton.jit
def head_ptr(ptr, strides, batch, head):
    """Where one head of a (B, S, H, D) tensor begins."""
    return ptr + batch * strides[0] + head * strides[2]


@triton.jit
def _row_ptrs(ptr, strides, start, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = tl.arange(0, BLOCK).to(tl.int64)[:, None] * strides[1]
    dims = tl.arange(0, BLOCK_D).to(tl.int64)[None, :] * strides[3]
    return ptr + tl.cast(start, tl.int64) * strides[1] + (rows + dims)


@triton.jit
def _inside(start, length, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr):
    inside = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    if TAIL:
        inside = inside & (start + tl.arange(0, BLOCK)[:, None] < length)
    return inside


@triton.jit
def load_rows(
    ptr, strides, start, length,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Rows `start` to `start + BLOCK` of one head, (BLOCK, BLOCK_D), with zeros where the tensor has ended."""
    ptrs = _row_ptrs(ptr, strides, start, BLOCK, BLOCK_D)
    if TAIL or HEAD_DIM < BLOCK_D:
        return tl.load(ptrs, mask=_inside(start, length, HEAD_DIM, BLOCK, BLOCK_D, TAIL), other=0.0)
    return tl.load(ptrs)


@triton.jit
def store_rows(
    ptr, strides, start, length, rows,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Round `rows` to the tensor's dtype and write those that exist."""
    inside = _inside(start, length, HEAD_DIM, BLOCK, BLOCK_D, True)
    tl.store(_row_ptrs(ptr, strides, start, BLOCK, BLOCK_D), narrow(rows, ptr.dtype.element_ty), mask=inside)


@triton.jit
def sees(rows, cols, seqlen_q, seqlen_k, mask_ptr, mask_strides, diagonal, CAUSAL: tl.constexpr):
    """Whether queries `rows` see keys `cols`; one of the two has shape (n, 1) and the other (1, m)."""
    visible = (rows < seqlen_q) & (cols < seqlen_k)
    if CAUSAL:
        visible = visible & (cols <= rows + diagonal)
    if mask_ptr is not None:
        ptrs = mask_ptr + rows.to(tl.int64) * mask_strides[2] + cols.to(tl.int64) * mask_strides[3]
        visible = visible & (tl.load(ptrs, mask=visible, other=0) != 0)
    return visible


@triton.jit
def key_range(start_m, seqlen_q, seqlen_k, diagonal, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(end of the whole tiles of keys that all queries of a tile see, end of the keys that any of them sees)."""
    all_see = seqlen_k
    any_sees = seqlen_k
    if CAUSAL:
        all_see = tl.minimum(seqlen_k, start_m + diagonal + 1)
        any_sees = tl.minimum(seqlen_k, tl.minimum(start_m + BLOCK_M, seqlen_q) + diagonal)
    return tl.maximum(all_see, 0) // BLOCK_N * BLOCK_N, tl.maximum(any_sees, 0)


@triton.jit
def _is_finite(x):
    return tl.abs(x.to(tl.float32)) < INF


@triton.jit
def all_finite(x):
    """Whether no element of a two-dimensional tile is NaN or infinite."""
    return tl.min(tl.min(_is_finite(x).to(tl.int32), 1), 0) == 1


@triton.jit
def dot_visible(weights, values, visible, acc, BLOCK: tl.constexpr):
    """acc + weights @ values, without the products of a hidden weight (an exact 0) and a value that is not finite.

    Finite values take the ordinary way, so their share has the same bits whatever the others are.
    """
    finite = _is_finite(values)
    acc = dot(narrow(weights, values.dtype), tl.where(finite, values, 0.0), acc)
    if not all_finite(values):
        special = tl.where(finite, 0.0, values.to(tl.float32))
        for index in range(BLOCK):
            chosen = tl.arange(0, BLOCK) == index
            weight = tl.sum(tl.where(chosen[None, :], weights, 0.0), 1)
            seen = tl.max((visible & chosen[None, :]).to(tl.int32), 1) == 1
            value = tl.sum(tl.where(chosen[:, None], special, 0.0), 0)
            counted = seen[:, None] & (value != 0.0)[None, :]
            acc += tl.where(counted, weight[:, None] * value[None, :], 0.0)
    return acc
