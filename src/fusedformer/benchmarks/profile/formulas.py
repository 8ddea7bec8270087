"""FLOPs and bytes of what a transformer computes, by formula: what a perfect kernel has to do, and no more.

Legend: Sq and Sk lengths of queries and keys, H query heads, K key heads, D head dimension of q and k, Dv of v.
A multiply-add is 2 FLOPs, any other operation on one number 1. Bytes are those of every operand read once and every
result written once.
Sources: Dao, "FlashAttention-2", 2023, section 4.1 (products of attention); Loshchilov, Hutter, "Decoupled Weight Decay
Regularization", 2019, algorithm 2 (AdamW).
"""

from collections.abc import Iterable
from typing import NamedTuple

LSE_SIZE = 4  # bytes of the float32 that attention and losses keep of each row
NORM_FLOPS = {
    # By element, as one writes them down. LayerNorm: 1 for the mean, 3 for the variance, 2 to normalise, 2 for weight
    # and bias; RMSNorm: 2 for the mean square, 1 to normalise, 1 for the weight.
    ("layer_norm", "forward"): 8,
    ("rms_norm", "forward"): 4,
    # LayerNorm: 2 for the normalised value, 1 for w dy, 3 for two sums over the row, 4 for dx, 3 for dw and db.
    # RMSNorm: 1, 1, 2 for one sum, 3, 2 for dw.
    ("layer_norm", "backward"): 13,
    ("rms_norm", "backward"): 9,
}
SOFTMAX_FLOPS = {
    "forward": 5,  # by element: maximum, difference, exp, sum, quotient; of its logarithm a difference in place of one
    "backward": 4,  # product and sum of dy and y, difference, product
}
# By element. GELU by erf: Phi 4, x Phi 1; backward Phi 4, phi 4, their sum times dy 3. By tanh: its argument 5, itself
# and the rest 4; backward those again, its derivative 9. SiLU: sigmoid 3, x times it 1; backward sigmoid 3, the rest 5.
ACTIVATION_FLOPS = {
    ("gelu", "forward"): 5,
    ("gelu", "backward"): 11,
    ("gelu_tanh", "forward"): 9,
    ("gelu_tanh", "backward"): 18,
    ("relu", "forward"): 1,
    ("relu", "backward"): 1,
    ("silu", "forward"): 4,
    ("silu", "backward"): 8,
}
CROSS_ENTROPY_FLOPS = {
    "forward": 4,
    "backward": 4,
}  # by logit: maximum, difference, exp, sum; difference, exp, 2 factors
ADAMW_FLOPS = 14  # by parameter: 1 decay, 3 first moment, 4 second moment, 3 denominator, 3 update


class Work(NamedTuple):
    """What has to be computed and moved."""

    flops: float
    n_bytes: float


def visible_pairs(
    Sq: int, Sk: int, *, left: int | None = None, right: int | None = None, bottom_right: bool = True
) -> int:
    """Pairs of a query and a key that it sees: i + d - left <= j <= i + d + right, d = Sk - Sq, or 0 from the top left.

    Causal attention is `right=0`; None is no bound.
    """
    diagonal = Sk - Sq if bottom_right else 0
    if left is not None and right is not None and left + right < 0:
        return 0
    reached = Sq * Sk if right is None else _clamped_sum(Sq, diagonal + right + 1, Sk)
    return reached - (0 if left is None else _clamped_sum(Sq, diagonal - left, Sk))


def packed_pairs(lengths: Iterable[tuple[int, int]], left: int | None = None, right: int | None = None) -> int:
    """`visible_pairs` of packed sequences, each a pair (Sq, Sk)."""
    return sum(visible_pairs(Sq, Sk, left=left, right=right) for Sq, Sk in lengths)


def attention_forward(pairs: int, queries: int, keys: int, *, H: int, K: int, D: int, Dv: int, itemsize: int) -> Work:
    """QK^T and PV of one attention.

    Args:
        pairs: that are visible, in all sequences of the batch.
        queries: rows of q, in all sequences.
        keys: rows of k and v, in all sequences.
        H: heads of q.
        K: heads of k and v.
        D: head dimension of q and k.
        Dv: head dimension of v.
        itemsize: bytes of an element.
    """
    moved = itemsize * (queries * H + keys * K) * (D + Dv)
    return Work(2 * pairs * H * (D + Dv), moved + LSE_SIZE * queries * H)


def attention_backward(pairs: int, queries: int, keys: int, *, H: int, K: int, D: int, Dv: int, itemsize: int) -> Work:
    """QK^T again, dP, dQ, dK and dV; arguments as of `attention_forward`.

    Our kernels compute QK^T and dP twice, which is no work of the problem: 7 products, of which 5 count.
    """
    read = itemsize * (queries * H * (D + 2 * Dv) + keys * K * (D + Dv)) + LSE_SIZE * queries * H
    written = itemsize * (queries * H * D + keys * K * (D + Dv))
    return Work(2 * pairs * H * (3 * D + 2 * Dv), read + written)


def adamw(parameters: int, *, itemsize: int) -> Work:
    """One fused step: parameter, gradient and two moments are read, all but the gradient written."""
    return Work(ADAMW_FLOPS * parameters, 7 * itemsize * parameters)


def convolution(out_elements: int, weight_elements: int, out_channels: int) -> float:
    """FLOPs of a convolution, forward, or of either of its gradients."""
    return 2 * out_elements * weight_elements / out_channels


def _clamped_sum(n: int, start: int, top: int) -> int:
    """Sum of i + start over i < n, each held between 0 and `top`."""
    return _ramp(n - 1 + start, top) - _ramp(start - 1, top)


def _ramp(last: int, top: int) -> int:
    """Sum of t over t <= last, each held between 0 and `top`."""
    below = max(0, min(last, top))
    return below * (below + 1) // 2 + max(0, last - top) * top
