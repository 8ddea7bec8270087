"""Dao-AILab's FlashAttention 2, 3 and 4, each from its own package, where it is installed.

FlashAttention 3 is `flash_attn_interface`, which one builds from its sources, or the wheel fa3-fwd, which has no
backward.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import Function, Implementation, MissingError, need

# Module and distribution, by generation; the first that is installed is used.
PACKAGES = {
    2: (("flash_attn", "flash-attn"),),
    3: (("flash_attn_interface", "flash-attn-3"), ("fa3_fwd_interface", "fa3-fwd")),
    4: (("flash_attn.cute", "flash-attn-4"),),
}
ALL = {2: -1, 3: -1, 4: None}  # how each writes that a window has no bound


def _function(generation: int, name: str) -> Function:
    """
    Raises:
        MissingError: it is not installed, has no such function, or there is no GPU.
    """
    if not torch.cuda.is_available():
        raise MissingError("needs a CUDA device")
    module, package = _found(generation)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:  # flash-attn-4 alone lies in the folder of flash-attn 2
        raise MissingError(f"{package}: {error}") from None


def _found(generation: int) -> tuple[str, str]:
    for module, package in PACKAGES[generation]:
        try:
            need(module, package)
            return module, package
        except MissingError:
            continue
    raise MissingError(" or ".join(package for _, package in PACKAGES[generation]) + " is not installed")


def _out(result: Any) -> Tensor:
    """Some versions give the log-sum-exp too."""
    return result if isinstance(result, Tensor) else result[0]


def dense(generation: int) -> Implementation:
    """Dense attention."""

    def build() -> Function:
        function, every = _function(generation, "flash_attn_func"), ALL[generation]

        def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Tensor:
            left = every if window is None else window
            return _out(function(q, k, v, causal=causal, window_size=(left, 0 if causal else every)))

        return attention

    return _implementation(generation, build)


def _fp8() -> Function:
    function = _function(3, "flash_attn_func")

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_descale: Tensor,
        k_descale: Tensor,
        v_descale: Tensor,
        *_: Tensor,
        causal: bool,
    ) -> Tensor:
        if q.shape[2] != k.shape[2]:
            raise MissingError("its query heads of a key head share a scale")
        return _out(function(
            q, k, v, causal=causal, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale
        ))  # fmt: skip

    return attention


def packed(generation: int) -> Implementation:
    """Sequences one behind the other."""

    def build() -> Function:
        function = _function(generation, "flash_attn_varlen_func")

        def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, max_seqlen: int) -> Tensor:
            return _out(function(
                q, k, v, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=max_seqlen,
                max_seqlen_k=max_seqlen, causal=causal,
            ))  # fmt: skip

        return attention

    return _implementation(generation, build)


def decode(generation: int) -> Implementation:
    """One query for each sequence over its cache: 2 and 3 have a function for it, 4 its dense one."""

    def build() -> Function:
        function = _function(generation, "flash_attn_func" if generation == 4 else "flash_attn_with_kvcache")

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _out(function(q, k, v))

        return attention

    return _implementation(generation, build)


def _implementation(generation: int, build: Any) -> Implementation:
    try:
        module, package = _found(generation)
    except MissingError:
        module, package = PACKAGES[generation][0]
    return Implementation(build, package, forward_only=module == "fa3_fwd_interface")


FP8 = _implementation(3, _fp8)  # attention of float8 tensors, which 2 and 4 do not have
