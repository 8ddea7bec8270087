"""What the attention kernels share: where a program works, tiles in and out, and products that no hidden NaN can enter.

Legend of all Triton attention code: B batch, Sq and Sk lengths of queries and keys, H query heads, Hkv key heads (each
serves `group` query heads), D head dimension of q and k, Dv that of v and out; BLOCK_M queries by BLOCK_N keys are one
tile of scores; BLOCK_D and BLOCK_DV are D and Dv rounded up to powers of two. Packed sequences (varlen) lie one after
the other in one row dimension: their batch stride is 0, and `Packing` tells where each begins.

- Scores are in base 2 before the exponential: q k^T * scale * log2(e) is then one multiply-add and one exp2.
- `diagonal` is the key that query 0 faces; query i sees keys from i + diagonal - left to i + diagonal + right.
- Kernels walk over the tiles in which every query sees every key with no mask in sight, then over the others; tiles in
  which no query sees a key are not visited.
- No atomics: each sum is taken by one program in one order, so results repeat bit for bit.
- Hidden values do not leak, not even NaN. A hidden weight is an exact 0, but 0 * NaN is NaN: where anything is hidden,
  each program notes whether its tile is finite, and a second launch (`REPAIR`) computes the rows of those that are not
  again, by sums that leave hidden products out instead of matrix products (`EXACT`). Its other programs return at once.
  A leak cannot pass unseen, since a sum that holds NaN is never finite.
- Offsets are 64-bit, and every stride may have any value.
"""

from typing import Any, NamedTuple

import triton.language as tl

from fusedformer.kernels.triton_compat import device_function, dot, narrow

INF = tl.constexpr(float("inf"))
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


class Packing(NamedTuple):
    """Where packed sequences begin, and which tile each program takes; all None where nothing is packed."""

    starts_q_ptr: Any = None  # (B + 1,) int32: rows of q before each sequence
    starts_k_ptr: Any = None  # (B + 1,) int32
    tiles_ptr: Any = None  # (slots, 2) int32: sequence, or -1 for none, and tile within it
    slots: Any = None


@device_function
def place(packing, length, heads, seqlen_q, seqlen_k, BOTTOM_RIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """Where this program works: batch (negative: nowhere), head, tile of BLOCK rows out of `length`; then first row and
    number of rows of q, of k, and the diagonal. Neighbours share a head's K and V in the L2 cache.
    """
    program = tl.program_id(0)
    first_q, first_k = 0, 0
    if packing.tiles_ptr is None:
        tiles = tl.cdiv(length, BLOCK)
        batch = (program // tiles // heads).to(tl.int64)
        head = (program // tiles % heads).to(tl.int64)
        tile = program % tiles
    else:
        slot = (2 * (program % packing.slots)).to(tl.int64)
        batch = tl.load(packing.tiles_ptr + slot).to(tl.int64)
        head = (program // packing.slots).to(tl.int64)
        tile = tl.load(packing.tiles_ptr + (slot + 1))
        sequence = tl.maximum(batch, 0)
        first_q, seqlen_q = _extent(packing.starts_q_ptr, sequence)
        first_k, seqlen_k = _extent(packing.starts_k_ptr, sequence)
    diagonal = seqlen_k - seqlen_q if BOTTOM_RIGHT else 0
    return batch, head, tile, first_q, seqlen_q, first_k, seqlen_k, diagonal


@device_function
def _extent(starts_ptr, sequence):
    """First row and number of rows of a sequence."""
    first = tl.load(starts_ptr + sequence)
    return first.to(tl.int64), tl.load(starts_ptr + (sequence + 1)) - first


@device_function
def head_ptr(ptr, strides, batch, head, first):
    """Where one head of a (B, S, H, D) tensor has its row `first`."""
    return ptr + (batch * strides[0] + head * strides[2] + first * strides[1])


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
def key_range(
    start_m, seqlen_q, seqlen_k, diagonal, left, right, whole: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of a tile of queries: where the keys begin and end that any of them sees, and that all see, in whole tiles.

    Without `whole` nothing counts as seen by all.
    """
    first, last = 0, seqlen_k
    all_first, all_last = 0, seqlen_k
    end_m = tl.minimum(start_m + BLOCK_M, seqlen_q)
    if right is not None:
        last = tl.maximum(tl.minimum(seqlen_k, end_m + diagonal + right), 0)
        all_last = tl.maximum(tl.minimum(seqlen_k, start_m + diagonal + right + 1), 0)
    if left is not None:
        first = tl.maximum(start_m + diagonal - left, 0) // BLOCK_N * BLOCK_N
        all_first = tl.cdiv(tl.maximum(end_m - 1 + diagonal - left, 0), BLOCK_N) * BLOCK_N
    all_last = tl.maximum(all_last // BLOCK_N * BLOCK_N, all_first) if whole else all_first
    return first, last, all_first, all_last


@device_function
def query_range(
    start_n, seqlen_q, seqlen_k, diagonal, left, right, whole: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`key_range` the other way round: of a tile of keys, the queries that see any of them, and that see all."""
    first, last = 0, seqlen_q
    all_first, all_last = 0, seqlen_q
    end_n = tl.minimum(start_n + BLOCK_N, seqlen_k)
    if right is not None:
        first = tl.maximum(start_n - diagonal - right, 0) // BLOCK_M * BLOCK_M
        all_first = tl.cdiv(tl.maximum(end_n - 1 - diagonal - right, 0), BLOCK_M) * BLOCK_M
    if left is not None:
        last = tl.maximum(tl.minimum(seqlen_q, end_n - diagonal + left), 0)
        all_last = tl.maximum(tl.minimum(seqlen_q, start_n - diagonal + left + 1), 0)
    all_last = tl.maximum(all_last // BLOCK_M * BLOCK_M, all_first) if whole else all_first
    return first, last, all_first, all_last


@device_function
def tiles_around(first, last, gap, BLOCK: tl.constexpr):
    """How many tiles there are from `first` to `last` without `gap` rows of them."""
    return tl.cdiv(tl.maximum(last - gap - first, 0), BLOCK)


@device_function
def tile_around(index, first, gap_first, gap, BLOCK: tl.constexpr):
    """Where tile `index` of these begins: tiles at `gap_first` and after it lie behind the gap."""
    start = first + index * BLOCK
    return start + tl.where(start >= gap_first, gap, 0)


@device_function
def all_finite(x):
    """Whether no element of a two-dimensional tile is NaN or infinite."""
    is_finite = tl.abs(x.to(tl.float32)) < INF
    return tl.min(is_finite.to(tl.int32)) == 1


@device_function
def scores_of(a, b, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b^T in float32: how well each row of `a` (m, D) fits each of `b` (n, D)."""
    if EXACT:
        return tl.sum(a[:, None, :].to(tl.float32) * b[None, :, :].to(tl.float32), 2)
    else:  # without it, the compiler would go on to the product, and refuse its sizes
        return dot(a, tl.trans(b), PRECISION=PRECISION)


@device_function
def add_weighted(acc, weights, values, visible, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """acc + weights @ values; a hidden weight is an exact 0, and with `EXACT` hides even a value that is NaN."""
    if EXACT:
        products = weights[:, :, None] * values[None, :, :].to(tl.float32)
        return acc + tl.sum(tl.where(visible[:, :, None], products, 0.0), 1)
    else:
        return dot(narrow(weights, values.dtype), values, acc, PRECISION)
