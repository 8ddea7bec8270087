"""LayerNorm of M rows of N features.

Contenders: ours, and torch.nn.functional.layer_norm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.contenders.rows import OTHERS
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, row_cases, traffic
from fusedformer.benchmarks.profile.formulas import NORM_FLOPS
from fusedformer.kernels.layer_norm import layer_norm

# Both are those of every norm. These: widths of transformers, and one that no vector divides.
ERROR_CASES = (
    Case({"M": 16, "N": 768}, torch.float32),
    Case({"M": 16, "N": 1023}, torch.float16),
    Case({"M": 16, "N": 1024}, torch.bfloat16),
)
TIME_CASES = {
    "cpu": (Case({"M": 4096, "N": 768}, torch.float32),),
    "cuda": row_cases(),
}


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (M, N); weight and bias (N,) near 1 and 0, as training leaves them."""
    M, N = case.sizes["M"], case.sizes["N"]
    x = randn((M, N), case, generator)
    return x, 1 + 0.1 * randn((N,), case, generator), 0.1 * randn((N,), case, generator)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and x and writes dx.

    Weights, their gradients and the statistics are 1/M or 1/N of that, and left out.
    """
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=NORM_FLOPS["layer_norm", direction])


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's."""
    return F.layer_norm(x, x.shape[-1:], weight, bias)


OP = Op(
    name="layer_norm",
    input_names=("x", "weight", "bias"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": layer_norm, "F.layer_norm": plain, "torch.compile": compiled(plain), **OTHERS["layer_norm"]},
    plain=plain,
    error_cases=ERROR_CASES,
    time_cases=TIME_CASES,
    balance=ROW_BALANCE,
)
