"""From a raw product q k^T to a score: scale, softcap, bias, ALiBi; which keys are hidden; which weights are dropped.

    score = cap(scale * q k^T) + bias - slope |i + diagonal - j|        cap(s) = softcap * tanh(s / softcap)

i and j are the positions of query and key in their sequence, as (m, 1) and (1, n) tensors, or (1, m) and (n, 1).
Source: ALiBi: Press et al., "Train Short, Test Long", 2022; softcap: Gemma Team, "Gemma 2", 2024; dropout: Salmon et
al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011 (Philox 4x32, 10 rounds).
"""

from typing import Any, NamedTuple

import triton.language as tl

from fusedformer.kernels.attention.tiles import INF, LOG2_E
from fusedformer.kernels.triton_compat import device_function


class Scoring(NamedTuple):
    """What is done to raw scores. What is None is not done, and costs nothing."""

    scale: Any
    scale_log2: Any  # scale * log2(e)
    softcap_log2: Any = None  # softcap * log2(e)
    bias_ptr: Any = None  # (B, H, Sq, Sk), any float dtype
    bias_strides: Any = None
    slopes_ptr: Any = None  # (B, H) float32
    slopes_strides: Any = None
    mask_ptr: Any = None  # (B, H, Sq, Sk) uint8
    mask_strides: Any = None
    seed_ptr: Any = None  # (1,) int64
    dropout_p: Any = None
    # Last, for Triton 3.6 learns what the tuples in a tuple hold only when it comes to a compile-time field after them.
    is_plain: Any = tl.constexpr(True)  # scores are scaled and no more, and the scale is positive


@device_function
def score(raw, i, j, batch, head, seqlen_q, seqlen_k, diagonal, scoring):
    """Score in base 2, but for a plain one, which is raw; and its derivative by the scaled product."""
    if scoring.is_plain:
        return raw, 1.0
    else:
        score = raw * scoring.scale_log2
        derivative = 1.0
        if scoring.softcap_log2 is not None:
            bounded = tanh(score / scoring.softcap_log2)
            score = bounded * scoring.softcap_log2
            derivative = 1.0 - bounded * bounded
        if scoring.bias_ptr is not None:
            score += _bias(i, j, batch, head, seqlen_q, seqlen_k, scoring) * LOG2_E
        if scoring.slopes_ptr is not None:
            score -= _slope(batch, head, scoring) * LOG2_E * distance(i, j, diagonal)
        return score, derivative


@device_function
def factor(scoring):
    """What turns the result of `score` into base 2: its multiplication is part of the exponential's multiply-add."""
    if scoring.is_plain:
        return scoring.scale_log2
    else:
        return 1.0


@device_function
def distance(i, j, diagonal):
    """|i + diagonal - j| in float32."""
    return tl.abs(i + diagonal - j).to(tl.float32)


@device_function
def sees(i, j, batch, head, seqlen_q, seqlen_k, diagonal, left, right, scoring):
    """Which queries see which keys."""
    visible = (i < seqlen_q) & (j < seqlen_k)
    if right is not None:
        visible = visible & (j <= i + (diagonal + right))
    if left is not None:
        visible = visible & (j >= i + (diagonal - left))
    if scoring.mask_ptr is not None:
        ptrs = _pair_ptrs(scoring.mask_ptr, scoring.mask_strides, i, j, batch, head)
        visible = visible & (tl.load(ptrs, mask=visible, other=0) != 0)
    if scoring.bias_ptr is not None:
        visible = visible & (_bias(i, j, batch, head, seqlen_q, seqlen_k, scoring) != -INF)
    return visible


@device_function
def kept(i, j, batch, head, heads, scoring):
    """Which weights dropout keeps: a function of the seed and the element's index alone."""
    random, _, _, _ = tl.philox(tl.load(scoring.seed_ptr), j, i, (batch * heads + head).to(tl.int32), 0)
    return (random >> 8).to(tl.float32) * 2.0**-24 >= scoring.dropout_p


@device_function
def tanh(x):
    """Hyperbolic tangent to about 2 ulp; by its series where 1 - exp(-2 |x|) would cancel."""
    size = tl.abs(x)
    decay = tl.exp2(size * (-2.0 * LOG2_E))
    far = (1.0 - decay) / (1.0 + decay)
    square = x * x
    # Minimax coefficients of Cephes, tanhf.
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = series * square - 5.37397155531e-2
    series = series * square + 1.33314422036e-1
    series = series * square - 3.33332819422e-1
    near = x + x * square * series
    return tl.where(size < 0.625, near, tl.where(x < 0.0, -far, far))


@device_function
def _bias(i, j, batch, head, seqlen_q, seqlen_k, scoring):
    """Past the ends of a sequence the last value stands in, which spares the load a mask; nobody sees it."""
    i = tl.minimum(i, seqlen_q - 1)
    j = tl.minimum(j, seqlen_k - 1)
    return tl.load(_pair_ptrs(scoring.bias_ptr, scoring.bias_strides, i, j, batch, head)).to(tl.float32)


@device_function
def _slope(batch, head, scoring):
    return tl.load(scoring.slopes_ptr + (batch * scoring.slopes_strides[0] + head * scoring.slopes_strides[1]))


@device_function
def _pair_ptrs(ptr, strides, i, j, batch, head):
    offsets = i.to(tl.int64) * strides[2] + j.to(tl.int64) * strides[3]
    return ptr + (batch * strides[0] + head * strides[1]) + offsets
