"""The arguments of the attention ops after q, k and v, in the order of their schemas."""

from typing import NamedTuple

import torch
from torch import Tensor

SCHEMA = (
    "Tensor? mask, Tensor? bias, Tensor? slopes, Tensor? sinks, Tensor? seed, Tensor? starts_q, Tensor? starts_k,"
    " float scale, float softcap, float dropout_p, SymInt? left, SymInt? right, bool bottom_right"
)


class Extras(NamedTuple):
    """What makes one attention differ from another; None, 0.0 for softcap and dropout: without it.

    B sequences; q is (B, Sq, H, D), k (B, Sk, Hkv, D), or of packed sequences (1, sum of Sq, H, D) and so on.
    """

    mask: Tensor | None  # bool, broadcastable to (B, H, Sq, Sk), four dimensions
    bias: Tensor | None  # any float dtype, as mask
    slopes: Tensor | None  # (B, H) float32
    sinks: Tensor | None  # (H,) float32
    seed: Tensor | None  # (1,) int64, of dropout
    starts_q: Tensor | None  # (B + 1,) int32, of packed sequences
    starts_k: Tensor | None  # as starts_q
    scale: float
    softcap: float
    dropout_p: float
    left: int | None  # query i sees no key before i + diagonal - left
    right: int | None  # nor after i + diagonal + right
    bottom_right: bool  # diagonal is Sk - Sq, not 0

    @property
    def is_packed(self) -> bool:
        """Whether sequences of different lengths lie one after the other."""
        return self.starts_q is not None

    @property
    def is_bare(self) -> bool:
        """Whether there is nothing but scaled products, and a window."""
        tensors = self[: Extras._fields.index("scale")]
        return self.softcap == 0 and all(tensor is None for tensor in tensors)

    @property
    def is_scaled_only(self) -> bool:
        """Whether scores are scaled products and nothing else."""
        return self.softcap == 0 and self.bias is None and self.slopes is None

    def window(self, q: Tensor, k: Tensor) -> tuple[int | None, int | None]:
        """left and right, None where they hide nothing, and small enough not to overflow when a position is added."""
        seqlen_q, seqlen_k = q.shape[1], k.shape[1]
        left, right = (None if side is None else min(side, seqlen_q + seqlen_k) for side in (self.left, self.right))
        if self.is_packed:
            return left, right
        last_of_left, last_of_right = (seqlen_k, seqlen_q) if self.bottom_right else (seqlen_q, seqlen_k)
        return (
            None if left is None or left >= last_of_left - 1 else left,
            None if right is None or right >= last_of_right - 1 else right,
        )

    def sum_rows(self, rows: Tensor) -> Tensor:
        """(B, H, Sq) float32, or packed (1, H, sum of Sq), summed over the queries of each sequence: (B, H)."""
        if self.starts_q is None:
            return rows.sum(2)
        return torch.segment_reduce(rows[0].T.contiguous(), "sum", offsets=self.starts_q.long(), axis=0, initial=0)

    def sinks_gradient(self, lse: Tensor, delta: Tensor) -> Tensor:
        """(H,): a sink is a key whose weight is exp(sink - lse), and whose value is 0."""
        assert self.sinks is not None  # it has a gradient
        weight = torch.exp(self.sinks[:, None] - lse).clamp(max=1).nan_to_num(0)
        if self.starts_q is not None:  # the rows after the last sequence have no sink
            weight = weight * (torch.arange(lse.shape[2], device=lse.device) < self.starts_q[-1])
        return -(weight * delta).sum((0, 2))
