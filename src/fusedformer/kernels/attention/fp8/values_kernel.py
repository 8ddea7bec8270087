"""What the Hopper kernel of float8 has to have done to v: transposed tiles, and NaN where hidden keys allow none.

attention_fp8_values_kernel writes v as that kernel loads it. Memory: v read and written once, 2 Sk Dv bytes a key head.
At 4 TB/s that is 140 / Sk of the time of the attention at 1,100 TFLOP/s, less where query heads share key heads, twice
that when causal (predicted; launches of a few microseconds not counted).

A hidden weight is an exact 0, but 0 * NaN is NaN. Where anything is hidden, NaN are left out of the tiles and noted,
and attention_fp8_nan_kernel writes NaN where a query sees one, whatever its weight. Its programs return at once where
there is no NaN.

Legend: ../tiles.py.
"""

import triton
import triton.language as tl

from fusedformer.kernels.attention.tiles import head_ptr, key_range, load_rows
from fusedformer.kernels.triton_compat import device_function, dot, narrow

NAN = tl.constexpr(0x7F)  # of e4m3, but for the sign


@device_function
def _is_nan(bits):
    return (bits & NAN) == NAN


@triton.jit(do_not_specialize=["heads", "seqlen_k"])
def attention_fp8_values_kernel(
    v_ptr,  # (B, Sk, Hkv, Dv) uint8: the bits of e4m3
    tiles_ptr,  # (B, Hkv, tiles, BLOCK_DV, BLOCK_N) uint8, contiguous
    nan_ptr,  # (B, Hkv, tiles) int8: whether a tile has NaN; None where nothing is hidden
    heads,
    seqlen_k,
    v_strides,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program writes one tile: a row for each dimension, keys in the order that the Hopper kernel's weights have.

    That is 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15 of every 16. What v does not have is 0.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(seqlen_k, BLOCK_N)
    plane = program // tiles
    start_n = (program % tiles) * BLOCK_N
    v_ptr = head_ptr(v_ptr, v_strides, plane // heads, plane % heads, 0)
    v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)
    if nan_ptr is not None:
        is_nan = _is_nan(v)
        tl.store(nan_ptr + program, tl.max(is_nan.to(tl.int32)).to(tl.int8))
        v = tl.where(is_nan, 0, v)
    v = tl.permute(tl.reshape(v, [BLOCK_N // 16, 2, 4, 2, BLOCK_DV]), [4, 0, 2, 1, 3])
    v = tl.reshape(v, [BLOCK_DV, BLOCK_N])
    rows = program * BLOCK_DV + tl.arange(0, BLOCK_DV)[:, None]
    tl.store(tiles_ptr + (rows * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]), v)


@triton.jit(do_not_specialize=["heads", "group", "seqlen_q", "seqlen_k", "left", "right"])
def attention_fp8_nan_kernel(
    v_ptr,  # (B, Sk, Hkv, Dv) uint8: the bits of e4m3
    nan_ptr,  # (B, Hkv, tiles) int8: whether a tile of BLOCK_N keys has NaN
    out_ptr,  # (B, Sq, H, Dv), contiguous
    heads,
    group,
    seqlen_q,
    seqlen_k,
    left,  # or None
    right,  # or None
    v_strides,
    out_strides,
    BOTTOM_RIGHT: tl.constexpr,  # the last query faces the last key
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,  # notes that are read at a time
):
    """One program writes NaN to those of BLOCK_M queries of one head that see one."""
    tiles_m = tl.cdiv(seqlen_q, BLOCK_M)
    plane = tl.program_id(0).to(tl.int64) // tiles_m
    start_m = (tl.program_id(0) % tiles_m) * BLOCK_M
    batch, head = plane // heads, plane % heads
    diagonal = seqlen_k - seqlen_q if BOTTOM_RIGHT else 0
    nan_ptr += plane // group * tl.cdiv(seqlen_k, BLOCK_N)
    v_ptr = head_ptr(v_ptr, v_strides, batch, head // group, 0)
    out_ptr = head_ptr(out_ptr, out_strides, batch, head, 0)
    first, last, _, _ = key_range(start_m, seqlen_q, seqlen_k, diagonal, left, right, False, BLOCK_M, BLOCK_N)
    last_tile = tl.cdiv(last, BLOCK_N)
    for start in tl.range(first // BLOCK_N, last_tile, CHUNK):
        chunk = start + tl.arange(0, CHUNK)
        if tl.max(tl.load(nan_ptr + chunk, mask=chunk < last_tile, other=0).to(tl.int32)) != 0:
            for tile in tl.range(start, tl.minimum(start + CHUNK, last_tile)):
                if tl.load(nan_ptr + tile) != 0:
                    _mark_tile(
                        v_ptr, out_ptr, start_m, tile * BLOCK_N, seqlen_q, seqlen_k, diagonal, left, right,
                        v_strides, out_strides, HEAD_DIM_V, BLOCK_DV, BLOCK_M, BLOCK_N,
                    )  # fmt: skip


@device_function
def _mark_tile(
    v_ptr, out_ptr, start_m, start_n, seqlen_q, seqlen_k, diagonal, left, right, v_strides, out_strides,
    HEAD_DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write NaN where one of BLOCK_M queries sees one in a tile of values."""
    i = start_m + tl.arange(0, BLOCK_M)[:, None]
    j = start_n + tl.arange(0, BLOCK_N)[None, :]
    visible = (i < seqlen_q) & (j < seqlen_k)
    if right is not None:
        visible = visible & (j <= i + (diagonal + right))
    if left is not None:
        visible = visible & (j >= i + (diagonal - left))
    v = load_rows(v_ptr, v_strides, start_n, seqlen_k, HEAD_DIM_V, BLOCK_N, BLOCK_DV, True)
    count = dot(visible.to(tl.float16), _is_nan(v).to(tl.float16))
    dims = tl.arange(0, BLOCK_DV)[None, :]
    ptrs = out_ptr + (i.to(tl.int64) * out_strides[1] + dims * out_strides[3])
    value = narrow(tl.full([BLOCK_M, BLOCK_DV], float("nan"), tl.float32), out_ptr.dtype.element_ty)
    tl.store(ptrs, value, mask=count > 0)
