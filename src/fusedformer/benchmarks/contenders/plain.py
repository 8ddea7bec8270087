"""Attention in plain PyTorch: as one writes it down, and in blocks of queries where the scores would fill the memory.

Legend: B batch, Sq and Sk lengths, K key heads, G query heads of each, D head dimension.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 1024  # queries at a time


def visible(Sq: int, Sk: int, causal: bool, window: int | None, device: torch.device, first: int = 0) -> Tensor | None:
    """Which keys queries `first` to `first + Sq` see, (Sq, Sk), the last query facing the last key; None for all."""
    if not causal and window is None:
        return None
    query = torch.arange(first, first + Sq, device=device).unsqueeze(1)
    key = torch.arange(Sk, device=device)
    seen = key <= query if causal else torch.ones(Sq, Sk, dtype=torch.bool, device=device)
    return seen if window is None else seen & (key >= query - window)


def eager(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool, window: int | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, in the dtype of q; as many queries as keys, or none masked.

    Args:
        q: (B, Sq, H, D).
        k: (B, Sk, K, D).
        v: (B, Sk, K, D).
        bias: (1, H, Sq, Sk).
        causal: query i sees keys up to i.
        window: query i sees keys from i - window.
    """
    return _attend(q, k, v, bias, visible(q.shape[1], k.shape[1], causal, window, q.device))


def in_blocks(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool, window: int | None = None
) -> Tensor:
    """The same a block of queries at a time, computed again for the backward: memory grows with S, not its square."""

    def block(q_rows: Tensor, k: Tensor, v: Tensor, bias_rows: Tensor | None, first: int) -> Tensor:
        seen = visible(q_rows.shape[1], k.shape[1], causal, window, q.device, first)
        return _attend(q_rows, k, v, bias_rows, seen)

    rows = [slice(first, first + BLOCK) for first in range(0, q.shape[1], BLOCK)]
    parts = [
        checkpoint(block, q[:, part], k, v, None if bias is None else bias[:, :, part], part.start, use_reentrant=False)
        for part in rows
    ]
    return torch.cat(parts, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seen: Tensor | None) -> Tensor:
    H, D = q.shape[2:]
    K = k.shape[2]
    grouped = q.unflatten(2, (K, H // K))  # (B, Sq, K, G, D)
    scores = torch.einsum("bqkgd,bskd->bkgqs", grouped, k) / math.sqrt(D)
    if bias is not None:
        scores = scores + bias.unflatten(1, (K, H // K))
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    return torch.einsum("bkgqs,bskd->bqkgd", scores.softmax(-1), v).flatten(2, 3)
