"""xFormers' memory_efficient_attention, where it is installed."""

from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import Function, Implementation, MissingError, need


def _modules() -> tuple[Function, Any]:
    need("xformers", "xformers")
    if not torch.cuda.is_available():
        raise MissingError("needs a CUDA device")
    from xformers import ops

    return ops.memory_efficient_attention, ops.fmha.attn_bias


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """It wants shared key heads as a dimension of their own: (B, S, K, G, D)."""
    H, K = q.shape[2], k.shape[2]
    if H == K:
        return q, k, v
    return q.unflatten(2, (K, H // K)), *(x.unsqueeze(3).expand(-1, -1, -1, H // K, -1) for x in (k, v))


def dense() -> Function:
    """Dense attention."""
    attend, biases = _modules()

    def attention(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool, window: int | None = None
    ) -> Tensor:
        mask: Any = biases.LowerTriangularMask() if causal else None
        if window is not None:
            mask = biases.LocalAttentionFromBottomRightMask(window_left=window, window_right=0 if causal else 2**30)
        if bias is not None:
            full = bias.expand(len(q), -1, -1, -1)
            mask = biases.LowerTriangularMaskWithTensorBias(full) if causal else full
        out = attend(*_grouped(q, k, v), attn_bias=mask)
        return out.reshape(q.shape)

    return attention


def packed() -> Function:
    """Sequences one behind the other."""
    attend, biases = _modules()
    masks: dict[tuple[int, bool], Any] = {}

    def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, max_seqlen: int) -> Tensor:
        key = id(cu_seqlens), causal
        if key not in masks:
            kind = biases.BlockDiagonalCausalMask if causal else biases.BlockDiagonalMask
            masks[key] = kind.from_seqlens(cu_seqlens.diff().tolist())
        out = attend(*_grouped(*(x.unsqueeze(0) for x in (q, k, v))), attn_bias=masks[key])
        return out.reshape(q.shape)

    return attention


DENSE, PACKED = (Implementation(build, "xformers") for build in (dense, packed))
