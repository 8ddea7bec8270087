"""Softmax of M rows of N elements.

Contenders: ours, and torch.softmax.
"""

from functools import partial

import torch

from fusedformer.benchmarks.contenders.rows import OTHERS
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, row_cases, traffic
from fusedformer.benchmarks.profile.formulas import SOFTMAX_FLOPS
from fusedformer.kernels.softmax import softmax


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (M, N), spread like attention scores or logits rather than all near 0."""
    return (4 * randn((case.sizes["M"], case.sizes["N"]), case, generator),)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and y and writes dx."""
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=SOFTMAX_FLOPS[direction])


plain = partial(torch.softmax, dim=-1)

OP = Op(
    name="softmax",
    input_names=("x",),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": softmax, "torch.softmax": plain, "torch.compile": compiled(plain), **OTHERS["softmax"]},
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
