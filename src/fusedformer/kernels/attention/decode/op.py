"""Attention against a cache of keys, for inference: append, rotate, attend; the cache dense or in pages.

Checks: inputs.py. Device code: kernel.py (Triton), launched by launch.py. Definition: reference.py.
Source: Dao, "FlashAttention-2", 2023, and "Flash-Decoding for long-context inference", 2023.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.attention import inputs as attention_inputs
from fusedformer.kernels.attention.decode import inputs, reference
from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.reference import accumulate_dtype

_CALL = Call("flash_attn_with_kvcache", "q", "k_cache", "v_cache")


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """flash-attn 2's function of that name: attention of a few queries to a long cache of keys, for inference.

    New keys and values k, v are written into the caches IN PLACE, where each sequence ends; the queries then see the
    old keys and the new ones, the last query facing the last key (see `attention` for `causal` and `window_size`).
    What the cache holds elsewhere, even NaN, does not matter. A query that sees no key gives 0 and a log-sum-exp of
    -inf.
    A sequence gives the same bits whatever the batch around it; in a cache of another size it may round differently.

    Beyond flash-attn: float32 too, any head dimension up to 512, another one for v, pages of any size, any strides,
    left padding of paged caches, any even rotary dimension.

    Args:
        q: (B, Sq, H, D), float32, float16 or bfloat16 (on the CPU float64 too).
        k_cache: (rows, capacity, Hkv, D) of q's dtype, with rows >= B; with `block_table` (pages, page size, Hkv, D).
        v_cache: the same with Dv for D.
        k: (B, Sn, Hkv, D): keys to append; with `v` and `cache_seqlens`.
        v: (B, Sn, Hkv, Dv).
        rotary_cos: (positions, R / 2), any float dtype: rotate the first R dimensions of k, new key i of a sequence by
            the angles of position length + i, and of q: query i by those of length + i if `causal` or with a window,
            by those of length otherwise. Positions past the table give NaN. With `k` only.
        rotary_sin: as rotary_cos.
        cache_seqlens: int or (B,) int32: length of each sequence before k is appended; None: the caches are full.
        cache_batch_idx: (B,) int32: the row of the caches that each sequence has; distinct, if k is appended.
        cache_leftpad: (B,) int32: hide the keys before this one.
        block_table: (B, pages of a sequence) int32: sequence b has its key j in row j % page size of page
            block_table[b, j // page size]. Not with `cache_batch_idx`.
        softmax_scale: factor of the scores; 1 / sqrt(D) if None.
        causal: hide what comes after the key that a query faces.
        window_size: (left, right) keys beside that one; -1 for all.
        softcap: cap(s) = softcap * tanh(s / softcap); 0.0 for none.
        rotary_interleaved: pairs of dimensions are (0, 1), (2, 3), ...; else (0, R / 2), (1, R / 2 + 1), ...
        alibi_slopes: (H,) or (B, H), floating point.
        num_splits: into how many parts at most the keys of a sequence are divided; 0: chosen from the shape.
        return_softmax_lse: return the log-sum-exp of each query's scores too.

    Returns:
        Tensor (B, Sq, H, Dv) of q's dtype; with `return_softmax_lse` a pair of it and a (B, H, Sq) float32 tensor.

    Raises:
        ValueError: shapes, dtypes, devices or settings do not fit, or an input requires grad. Lengths and pages that
            the cache has not are found on the CPU, and on a GPU only with FUSEDFORMER_CHECK=1 in the environment,
            since it waits for the GPU; without, keys past the capacity are neither written nor read, and a page
            or row that does not exist is undefined.

    Source: Dao et al., flash-attn 2, flash_attn_interface.py.
    """
    inputs.check_cache(_CALL, q, k_cache, v_cache, {"k": k, "v": v})
    new = None if k is None else k.shape[1]
    places = inputs.places(_CALL, q, k_cache, new, cache_seqlens, cache_leftpad, cache_batch_idx, block_table)
    inputs.check_rotary(_CALL, q, k is not None, rotary_cos, rotary_sin)
    splits = inputs.check_splits(_CALL, num_splits)
    left, right = attention_inputs.window_sides(_CALL, window_size, causal)
    heads = q.shape[2]
    slopes = attention_inputs.per_head(_CALL, "alibi_slopes", alibi_slopes, q, [(heads,), (len(q), heads)])
    scale = 1 / math.sqrt(q.shape[3]) if softmax_scale is None else softmax_scale
    scale = attention_inputs.number(_CALL, "softmax_scale", scale, -math.inf, math.inf)
    softcap = attention_inputs.number(_CALL, "softcap", softcap, 0, math.inf)

    where = (places.lengths, places.length, places.leftpad, places.rows, places.block_table)
    if k is not None:
        advance = left is not None or right is not None
        rotated = attention_append(
            q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, rotary_interleaved, advance, *where
        )
        q = q if rotary_cos is None else rotated
        where = (places.lengths, places.length + k.shape[1], *where[2:])
    slopes = None if slopes is None else slopes.expand(len(q), heads)
    out, lse = attention_decode(q, k_cache, v_cache, slopes, scale, softcap, left, right, splits, *where)
    return (out, lse) if return_softmax_lse else out


def _append_fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, cos: Any, *_: Any) -> Tensor:
    return q.new_empty(0) if cos is None else q.new_empty(q.shape)


def _decode_fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=accumulate_dtype(q.dtype))
    return q.new_empty((*q.shape[:-1], v_cache.shape[-1])), lse


_launch = library.triton_launchers("fusedformer.kernels.attention.decode.launch")
attention_append = library.define(
    "attention_append(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor? cos, Tensor? sin,"
    f" bool interleaved, bool advance, {inputs.SCHEMA}) -> Tensor",
    fallback=reference.attention_append,
    fake=_append_fake,
    launch=_launch and _launch.attention_append,
)
attention_decode = library.define(
    "attention_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? slopes, float scale, float softcap,"
    f" SymInt? left, SymInt? right, int num_splits, {inputs.SCHEMA}) -> (Tensor, Tensor)",
    fallback=reference.attention_decode,
    fake=_decode_fake,
    launch=_launch and _launch.attention_decode,
)
library.refuse_gradients("attention_append", "use attention() for gradients", mutated=(1, 2))
library.refuse_gradients("attention_decode", "use attention() for gradients")
