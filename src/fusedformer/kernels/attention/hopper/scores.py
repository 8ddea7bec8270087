"""From a raw product q k^T to a score in base 2: scale, softcap and ALiBi; formulas: ../scores.py.

Scores leave `score` divided by `factor`, by which the maximum and the multiply-add of the exponential then multiply.

Softcap: softcap tanh(y) = softcap - 2 softcap / (1 + exp(2 y)). The first term is the same for all keys, which softmax
does not see: what is left is factor * -1 / (1 + exp2(rate q k^T)), an exponential and a reciprocal of the special
function unit beside the exponential of softmax. Their errors are relative to the softcap, 2^-22 of it, and least for
the highest scores, unlike those of tanh.approx, 2^-11 of each score. The first term is added to the highest score in
the end, for the LSE.

ALiBi: a distance takes one subtraction, and its product with the slope is part of a multiply-add, for of a key's place
in the tile a part is a constant of the register that its score is in, and only the rest differs from thread to thread.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fusedformer.kernels.attention.hopper.ring import ROWS

LOG2_E = gl.constexpr(1.4426950408889634)


class Scoring(NamedTuple):
    """What is done to raw products; what is None is not done, and costs nothing."""

    factor: Any  # of what `score` gives, positive
    softcap_log2: Any  # softcap * log2(e)
    rate: Any  # 2 scale / softcap * log2(e)
    diagonal: Any  # the key that query 0 faces
    slopes_ptr: Any  # (H,) float32 of this batch, of ALiBi
    slopes_stride: Any
    slopes: Any  # of a consumer's rows, (rows,), as `load_slopes` gives them


@gluon.jit
def load_slopes(scoring, head, layout: gl.constexpr):
    """The slopes of a consumer's rows, of `head` or each of its own, divided by `scoring.factor` as scores are."""
    slopes = gl.load(scoring.slopes_ptr + head * scoring.slopes_stride) * (LOG2_E / scoring.factor)
    return gl.full([ROWS], 0.0, gl.float32, layout) + slopes


@gluon.jit
def score(s, i, start_n, scoring, layout: gl.constexpr):
    """Scores by `scoring.factor`, less what is the same for all keys, of raw products of queries `i`.

    Keys are from `start_n` on.
    """
    if scoring.rate is not None:
        s = _reciprocal(-1.0 - gl.exp2(s * scoring.rate))
    if scoring.slopes is not None:
        j = gl.arange(0, s.shape[1], gl.SliceLayout(0, layout))
        ahead = gl.expand_dims(i + (scoring.diagonal - start_n), 1) - gl.expand_dims(j & 6, 0)
        distance = gl.abs(ahead.to(gl.float32) - gl.expand_dims((j & -7).to(gl.float32), 0))
        s = s - distance * gl.expand_dims(scoring.slopes, 1)
    return s


@gluon.jit
def with_softcap(peak, scoring):
    """The highest score of each query with what `score` leaves out."""
    if scoring.softcap_log2 is not None:
        peak = peak + scoring.softcap_log2
    return peak


@gluon.jit
def _reciprocal(x):
    """1 / x to 1 ulp; 0 where `x` is infinite."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
