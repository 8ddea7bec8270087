"""Residual + LayerNorm of M rows of N features, as between the blocks of a transformer.

Contenders: ours, and PyTorch's sum and norm one after the other. Dropout is left out: no two generators drop the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, traffic
from fusedformer.benchmarks.layer_norm import ERROR_CASES, TIME_CASES
from fusedformer.benchmarks.profile.formulas import NORM_FLOPS
from fusedformer.kernels.add_norm import add_layer_norm


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x and residual (M, N); weight and bias (N,) near 1 and 0, as training leaves them."""
    M, N = case.sizes["M"], case.sizes["N"]
    x, residual = (randn((M, N), case, generator) for _ in range(2))
    return x, residual, 1 + 0.1 * randn((N,), case, generator), 0.1 * randn((N,), case, generator)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and residual and writes s and y; backward reads dy and s and writes dx.

    Weights, their gradients and the statistics are 1/M or 1/N of that, and left out.
    """
    if direction == FORWARD:
        return traffic(case, tensors=4, flops=1 + NORM_FLOPS["layer_norm", FORWARD])
    return traffic(case, tensors=3, flops=NORM_FLOPS["layer_norm", direction])


def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The norm alone, as in a post-norm block."""
    return add_layer_norm(x, residual, weight, bias)[0]


def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's."""
    return F.layer_norm(x + residual, x.shape[-1:], weight, bias)


OP = Op(
    name="add_layer_norm",
    input_names=("x", "residual", "weight", "bias"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": ours, "x + residual, F.layer_norm": plain, "torch.compile": compiled(plain)},
    plain=plain,
    error_cases=ERROR_CASES,
    time_cases=TIME_CASES,
    balance=ROW_BALANCE,
)
