"""FlexAttention of PyTorch: masks and biases as functions of places, compiled into one kernel."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from fusedformer.benchmarks.harness.implementation import Function, Implementation, compiled

_COMPILED = compiled(flex.flex_attention)


def dense() -> Function:
    """Dense attention, its block mask made once for a case."""
    kernel = _COMPILED.build()

    def attention(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool, window: int | None = None
    ) -> Tensor:
        mask = block_mask(q.shape[1], k.shape[1], causal, window, q.device)
        score = None if bias is None else functools.partial(_add, bias)
        return _call(kernel, q, k, v, score, mask)

    return attention


def packed() -> Function:
    """Sequences one behind the other, of which none sees another."""
    kernel = _COMPILED.build()

    def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, max_seqlen: int) -> Tensor:
        mask = _document_mask(_Key(cu_seqlens), len(q), causal)
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
        return _call(kernel, q, k, v, None, mask).squeeze(0)

    return attention


def _call(kernel: Function, q: Tensor, k: Tensor, v: Tensor, score: Any, mask: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = kernel(q, k, v, score_mod=score, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def _add(bias: Tensor, score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score + bias[0, h, query, key]


@functools.lru_cache(maxsize=1)
def block_mask(Sq: int, Sk: int, causal: bool, window: int | None, device: torch.device) -> flex.BlockMask | None:
    """Of what queries see; None for all."""
    if not causal and window is None:
        return None

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before = key <= query if causal else key == key
        return before if window is None else before & (key >= query - window)

    return flex.create_block_mask(seen, None, None, Sq, Sk, device=device)


class _Key:
    """A tensor by its identity, for a cache."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.tensor is other.tensor


@functools.lru_cache(maxsize=64)  # of all inputs that take turns in one case
def _document_mask(cu_seqlens: _Key, total: int, causal: bool) -> flex.BlockMask:
    lengths = cu_seqlens.tensor.diff()
    document = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=total)

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document[query] == document[key]
        return same & (key <= query) if causal else same

    return flex.create_block_mask(seen, None, None, total, total, device=lengths.device)


DENSE, PACKED = Implementation(dense), Implementation(packed)
