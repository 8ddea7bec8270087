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

os.environ["FUSEDFORMER_EMULATE"] = "1"

import torch
from torch import Tensor

from fusedformer import attention, bias_gelu, gelu, layer_norm, softmax, swiglu

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
        elif op == "gelu":
            yield gelu, [x]
        elif op == "bias_activation":
            yield bias_gelu, [x, bias]
        elif op == "glu":
            yield swiglu, [x, randn(ROWS, length, dtype=dtype)]
            yield swiglu, [randn(ROWS, 2 * length, dtype=dtype)]
        else:
            yield layer_norm, [x, weight, bias]
            yield layer_norm, [x]
    if op == "layer_norm":  # more rows than are summed in one go
        yield layer_norm, [randn(*shape, dtype=torch.float32) for shape in [(1037, 24), (24,), (24,)]]


def calls_of_attention() -> Iterator[Call]:
    for dtype, (seqlen_q, seqlen_k) in itertools.product((torch.float32, torch.bfloat16), [(5, 33), (33, 5)]):
        sizes = [(2, seqlen_q, 2, 40), (2, seqlen_k, 1, 40), (2, seqlen_k, 1, 40)]
        inputs = [randn(*size, dtype=dtype) for size in sizes]
        mask = torch.rand(seqlen_q, seqlen_k) < 0.7
        yield functools.partial(attention, causal=True), inputs
        yield functools.partial(attention, mask=mask), inputs


if __name__ == "__main__":
    library, op, side = sys.argv[1:]
    ctypes.CDLL(library).guard_cpu_tensors(side == "end")
    for function, inputs in calls_of_attention() if op == "attention" else calls_in_rows(op):
        print(op, *(f"{x.dtype} {tuple(x.shape)}" for x in inputs), flush=True)
        out = function(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
