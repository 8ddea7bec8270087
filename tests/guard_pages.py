"""`python guard_pages.py LIBRARY OP SIDE`: an op, forward and backward, on tensors beside unreadable pages.

LIBRARY is guard_pages.cpp, compiled; SIDE, `end` or `start`, says where the page is. A kernel of the emulated world
that reads or writes past that side of a tensor ends the process by a segmentation fault. Values are not looked at:
PyTorch's own kernels, which would judge them, read past the end of a tensor here and there.
"""

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ["FUSEDFORMER_EMULATE"] = "1"

import torch
from torch import Tensor

from fusedformer import (
    add_layer_norm,
    attention,
    bias_gelu,
    cross_entropy,
    flash_attn_with_kvcache,
    gelu,
    layer_norm,
    log_softmax,
    rms_norm,
    softmax,
    swiglu,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = (1, 2, 7, 8, 33, 127, 1000, 1024, 1025, 4097)
ROWS = 5

Call = tuple[Callable[..., Tensor], list[Tensor]]


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def calls_in_rows(op: str) -> Iterator[Call]:
    for dtype, length in itertools.product(DTYPES, LENGTHS):
        x, weight, bias = (randn(*shape, dtype=dtype) for shape in [(ROWS, length), (length,), (length,)])
        if op == "softmax":
            yield softmax, [x]
        elif op == "log_softmax":
            yield log_softmax, [x]
        elif op == "masked_softmax":
            yield functools.partial(softmax, mask=torch.rand(ROWS, length) < 0.7, causal=True), [x]
            yield functools.partial(softmax, mask=bias.detach()), [x]
        elif op == "gelu":
            yield gelu, [x]
        elif op == "bias_activation":
            yield bias_gelu, [x, bias]
        elif op == "glu":
            yield swiglu, [x, randn(ROWS, length, dtype=dtype)]
            yield swiglu, [randn(ROWS, 2 * length, dtype=dtype)]
        elif op == "rms_norm":
            yield rms_norm, [x, weight]
        elif op == "add_norm":
            yield _both_of_add_layer_norm, [x, randn(ROWS, length, dtype=dtype), weight, bias]
        elif op == "cross_entropy":
            target = torch.arange(ROWS) * (length - 1) // (ROWS - 1)  # the first and the last class among them
            target[1] = length  # no class
            yield functools.partial(cross_entropy, target=target), [x]
            weight = weight.detach().float()
            yield functools.partial(cross_entropy, target=target, weight=weight, label_smoothing=0.1), [x]
        else:
            yield layer_norm, [x, weight, bias]
            yield layer_norm, [x]
    if op == "layer_norm":  # more rows than are summed in one go, on the way to dx and apart from it
        for n in (24, 23):
            yield layer_norm, [randn(*shape, dtype=torch.float32) for shape in [(1037, n), (n,), (n,)]]


def _both_of_add_layer_norm(*inputs: Tensor) -> Tensor:
    return torch.cat(add_layer_norm(*inputs, dropout_p=0.3), -1)


def calls_of_attention() -> Iterator[Call]:
    for dtype, (seqlen_q, seqlen_k) in itertools.product((torch.float32, torch.bfloat16), [(5, 33), (33, 5)]):
        sizes = [(2, seqlen_q, 2, 40), (2, seqlen_k, 1, 40), (2, seqlen_k, 1, 40)]
        inputs = [randn(*size, dtype=dtype) for size in sizes]
        mask = torch.rand(seqlen_q, seqlen_k) < 0.7
        yield functools.partial(attention, causal=True), inputs
        yield functools.partial(attention, mask=mask), inputs
        yield functools.partial(attention, window=(3, 1), softcap=20.0, dropout_p=0.3), inputs
        bias, slopes, sinks = (randn(*shape, dtype=torch.float32) for shape in [(2, seqlen_q, seqlen_k), (2,), (2,)])
        yield _with_biases, [*inputs, bias, slopes, sinks]
        yield _packed, [randn(*x.flatten(0, 1).shape, dtype=dtype) for x in inputs]


def _with_biases(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, slopes: Tensor, sinks: Tensor) -> Tensor:
    return attention(q, k, v, bias=bias, alibi_slopes=slopes, sinks=sinks)


def _packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Three sequences, the second one empty, and rows after the last."""
    starts_q, starts_k = (torch.tensor([0, len(x) // 3, len(x) // 3, len(x) - 1], dtype=torch.int32) for x in (q, k))
    return attention(q, k, v, cu_seqlens_q=starts_q, cu_seqlens_k=starts_k, causal=True)


def calls_of_decode() -> Iterator[Call]:
    for dtype, page, seqlen_q in itertools.product((torch.float32, torch.bfloat16), (None, 8), (1, 3)):
        q, k, v = (torch.randn(2, seqlen_q, heads, 24).to(dtype) for heads in (4, 2, 2))
        cache = torch.randn((2, 33, 2, 24) if page is None else (9, page, 2, 24)).to(dtype)
        cos, sin = torch.randn(40, 8).to(dtype), torch.randn(40, 8).to(dtype)
        where: dict[str, Any] = {"cache_seqlens": torch.tensor([29, 5], dtype=torch.int32)}
        if page is not None:
            where["block_table"] = torch.tensor([[8, 0, 3, 5], [1, 7, 2, 4]], dtype=torch.int32)
        settings: dict[str, Any]
        for settings in ({}, {"window_size": (6, 0), "num_splits": 3}, {"rotary_cos": cos, "rotary_sin": sin}):
            call = functools.partial(flash_attn_with_kvcache, causal=True, **where, **settings)
            yield call, [q, cache, cache.clone(), k, v]


CALLS = {"attention": calls_of_attention, "decode": calls_of_decode}

if __name__ == "__main__":
    library, op, side = sys.argv[1:]
    ctypes.CDLL(library).guard_cpu_tensors(side == "end")
    for function, inputs in CALLS[op]() if op in CALLS else calls_in_rows(op):
        print(op, *(f"{x.dtype} {tuple(x.shape)}" for x in inputs), flush=True)
        out = function(*inputs)
        if out.requires_grad:
            torch.autograd.grad(out, inputs, torch.ones_like(out))
