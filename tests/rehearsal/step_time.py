"""Host time per call beside PyTorch's own op: CPU time of all threads, the least of interleaved rounds.

Three ways of a call: forward without gradients, forward with them, forward and backward. Values do not matter and are
zeros; sizes are small, as where host time counts.
"""

import functools
import gc
import os
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fusedformer

ROUNDS, CALLS = 15, 60
ROWS, COLUMNS, CLASSES = 256, 1024, 8192


def tensor(*shape: int) -> Tensor:
    """A leaf of zeros on the device."""
    return torch.zeros(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def pairs() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Of each op: ours, PyTorch's, and the tensors both are given."""
    x, w, b, r = tensor(ROWS, COLUMNS), tensor(COLUMNS), tensor(COLUMNS), tensor(ROWS, COLUMNS)
    gate, up = tensor(ROWS, COLUMNS), tensor(ROWS, COLUMNS)
    logits, target = tensor(ROWS, CLASSES), torch.zeros(ROWS, dtype=torch.int64, device="cuda")
    q, k, v = (tensor(2, 256, 8, 64) for _ in range(3))
    size = (COLUMNS,)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    return {
        "layer_norm": (fusedformer.layer_norm, lambda x, w, b: F.layer_norm(x, size, w, b), (x, w, b)),
        "rms_norm": (fusedformer.rms_norm, lambda x, w: F.rms_norm(x, size, w), (x, w)),
        "softmax": (fusedformer.softmax, lambda x: F.softmax(x, -1), (x,)),
        "log_softmax": (fusedformer.log_softmax, lambda x: F.log_softmax(x, -1), (x,)),
        "gelu": (fusedformer.gelu, F.gelu, (x,)),
        "bias_gelu": (fusedformer.bias_gelu, lambda x, b: F.gelu(x + b), (x, b)),
        "swiglu": (fusedformer.swiglu, lambda gate, up: F.silu(gate) * up, (gate, up)),
        "cross_entropy": (
            lambda logits: fusedformer.cross_entropy(logits, target), lambda logits: F.cross_entropy(logits, target),
            (logits,),
        ),
        "add_layer_norm": (
            lambda *args: fusedformer.add_layer_norm(*args)[0],
            lambda x, r, w, b: F.layer_norm(x + r, size, w, b), (x, r, w, b),
        ),
        "add_rms_norm": (
            lambda *args: fusedformer.add_rms_norm(*args)[0], lambda x, r, w: F.rms_norm(x + r, size, w), (x, r, w),
        ),
        "attention": (fusedformer.attention, sdpa, (q, k, v)),
    }  # fmt: skip


def with_backward(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], object]:
    """Forward and backward, through the engine once and with a gradient that is there already."""
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def microseconds(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Of one call each: the least of the rounds, which take turns."""
    least = [float("inf")] * 2
    for _ in range(ROUNDS):
        for side, call in enumerate((ours, theirs)):
            start = time.process_time_ns()
            for _ in range(CALLS):
                call()
            least[side] = min(least[side], (time.process_time_ns() - start) / CALLS / 1e3)
    return least[0], least[1]


def main(names: list[str]) -> None:
    """Print one line per op."""
    torch.set_num_threads(1)
    gc.disable()
    print(
        f"{'host time per call, us':24}" + "".join(f"{way:>26}" for way in ("no grad", "forward", "forward+backward"))
    )
    print(f"{'':24}" + f"{'ours':>10}{'ATen':>8}{'ratio':>8}" * 3)
    for name, (ours, theirs, inputs) in pairs().items():
        if names and name not in names:
            continue
        with torch.no_grad():
            grad = torch.zeros_like(theirs(*inputs))
            cells = [microseconds(functools.partial(ours, *inputs), functools.partial(theirs, *inputs))]
        cells.append(microseconds(functools.partial(ours, *inputs), functools.partial(theirs, *inputs)))
        cells.append(microseconds(with_backward(ours, inputs, grad), with_backward(theirs, inputs, grad)))
        text = "".join(f"{mine:10.1f}{aten:8.1f}{mine / aten:8.2f}" for mine, aten in cells)
        print(f"{name:24}{text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # libraries' threads that wait for a GPU are not to be joined
