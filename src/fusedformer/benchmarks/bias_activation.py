"""GELU or ReLU of x + bias, M rows of N features.

Contenders: ours, and torch.nn.functional's after an addition.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, traffic
from fusedformer.benchmarks.profile.formulas import ACTIVATION_FLOPS
from fusedformer.kernels.bias_activation import bias_gelu, bias_relu

OURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": bias_gelu,
    "gelu_tanh": lambda x, bias: bias_gelu(x, bias, approximate="tanh"),
    "relu": bias_relu,
}
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (M, N) and bias (N,)."""
    M, N = case.sizes["M"], case.sizes["N"]
    return 2 * randn((M, N), case, generator), randn((N,), case, generator)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and x and writes dx.

    The bias and its gradient are 1/M of that, and left out.
    """
    flops = 1 + ACTIVATION_FLOPS[case.options["activation"], direction]  # the bias, or the sum that is its gradient
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=flops)


def ours(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    """In one pass."""
    return OURS[activation](x, bias)


def plain(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    """PyTorch's, in two."""
    return PLAIN[activation](x + bias)


def _cases(M: int, N: int, *dtypes: torch.dtype) -> tuple[Case, ...]:
    return tuple(Case({"M": M, "N": N}, dtype, {"activation": name}) for dtype in dtypes for name in OURS)


OP = Op(
    name="bias_activation",
    input_names=("x", "bias"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": ours, "F.gelu(x + bias)": plain, "torch.compile": compiled(plain)},
    plain=plain,
    error_cases=(*_cases(16, 1024, torch.float32, torch.bfloat16), *_cases(16, 1023, torch.float16)),
    time_cases={
        "cpu": _cases(1024, 3072, torch.float32),
        "cuda": tuple(case for N in (1024, 4096, 16384) for case in _cases(2**27 // N, N, torch.bfloat16)),
    },
    balance=ROW_BALANCE,
)
