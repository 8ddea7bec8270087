"""RMSNorm of M rows of N features.

Contenders: ours, and torch.nn.functional.rms_norm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.contenders.rows import OTHERS
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, traffic
from fusedformer.benchmarks.layer_norm import ERROR_CASES, TIME_CASES
from fusedformer.benchmarks.profile.formulas import NORM_FLOPS
from fusedformer.kernels.rms_norm import rms_norm


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (M, N); weight (N,) near 1, as training leaves it."""
    M, N = case.sizes["M"], case.sizes["N"]
    return randn((M, N), case, generator), 1 + 0.1 * randn((N,), case, generator)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and x and writes dx.

    The weight, its gradient and the statistic are 1/M or 1/N of that, and left out.
    """
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=NORM_FLOPS["rms_norm", direction])


def plain(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's."""
    return F.rms_norm(x, x.shape[-1:], weight)


OP = Op(
    name="rms_norm",
    input_names=("x", "weight"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": rms_norm, "F.rms_norm": plain, "torch.compile": compiled(plain), **OTHERS["rms_norm"]},
    plain=plain,
    error_cases=ERROR_CASES,
    time_cases=TIME_CASES,
    balance=ROW_BALANCE,
)
