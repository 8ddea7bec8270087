"""Logarithm of the softmax of M rows of N elements.

Contenders: ours, and torch.log_softmax.
"""

from functools import partial

import torch

from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, row_cases, traffic
from fusedformer.benchmarks.profile.formulas import SOFTMAX_FLOPS
from fusedformer.kernels.log_softmax import log_softmax


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (M, N), spread like logits rather than all near 0."""
    return (4 * randn((case.sizes["M"], case.sizes["N"]), case, generator),)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and y and writes dx."""
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=SOFTMAX_FLOPS[direction])


plain = partial(torch.log_softmax, dim=-1)

OP = Op(
    name="log_softmax",
    input_names=("x",),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": log_softmax, "torch.log_softmax": plain, "torch.compile": compiled(plain)},
    plain=plain,
    error_cases=(
        Case({"M": 16, "N": 512}, torch.float32),
        Case({"M": 16, "N": 1001}, torch.float16),
        Case({"M": 16, "N": 4096}, torch.bfloat16),
    ),
    time_cases={
        "cpu": (Case({"M": 4096, "N": 1024}, torch.float32),),
        "cuda": row_cases(),
    },
    balance=ROW_BALANCE,
)
