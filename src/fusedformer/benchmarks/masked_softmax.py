"""Softmax of H matrices of Q rows of N elements, scaled, with a boolean mask for all of them, or causal.

Contenders: ours, and torch.softmax of scores that are masked before.
"""

import math

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, Case, Inputs, Op, Work, randn, traffic
from fusedformer.benchmarks.profile.formulas import SOFTMAX_FLOPS
from fusedformer.kernels.softmax import softmax

SCALE = 0.125


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (H, Q, N), spread like attention scores; where there is a mask, (Q, N) of 0 and 1, 3 of 4 seen."""
    shape = tuple(case.sizes[name] for name in "HQN")
    x = 32 * randn(shape, case, generator)
    seen = torch.rand(shape[1:], generator=generator, device=generator.device) < 0.75
    return x, seen.byte()


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and y and writes dx.

    The mask is 1/H of that, and left out; so is that nothing is read of what causal hides.
    """
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=1 + SOFTMAX_FLOPS[direction])


def ours(x: Tensor, seen: Tensor, causal: bool = False) -> Tensor:
    """Ours."""
    return softmax(x, scale=SCALE, mask=None if causal else seen.view(torch.bool), causal=causal)


def plain(x: Tensor, seen: Tensor, causal: bool = False) -> Tensor:
    """PyTorch's."""
    hidden = torch.ones_like(seen).triu(seen.shape[1] - seen.shape[0] + 1) if causal else seen ^ 1
    return torch.softmax((x * SCALE).masked_fill(hidden.view(torch.bool), -math.inf), dim=-1)


OP = Op(
    name="masked_softmax",
    input_names=("x", "seen"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": ours, "torch.softmax": plain, "torch.compile": compiled(plain)},
    plain=plain,
    error_cases=(
        Case({"H": 2, "Q": 16, "N": 512}, torch.float32),
        Case({"H": 2, "Q": 16, "N": 101}, torch.float16),
        Case({"H": 2, "Q": 64, "N": 64}, torch.bfloat16, {"causal": True}),
    ),
    time_cases={
        "cpu": (Case({"H": 8, "Q": 512, "N": 512}, torch.float32),),
        "cuda": (
            Case({"H": 32, "Q": 2048, "N": 2048}, torch.bfloat16),
            Case({"H": 32, "Q": 2048, "N": 2048}, torch.bfloat16, {"causal": True}),
            Case({"H": 2, "Q": 8192, "N": 8192}, torch.bfloat16),
        ),
    },
)
