"""Gated linear units of M rows of N features, whose gate and up are the halves of one tensor.

Contenders: ours, and torch.nn.functional's activation and a product.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.contenders.rows import OTHERS
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, ROW_BALANCE, Case, Inputs, Op, Work, randn, traffic
from fusedformer.benchmarks.profile.formulas import ACTIVATION_FLOPS
from fusedformer.kernels.glu import geglu, swiglu

OURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "geglu": geglu,
    "geglu_tanh": lambda gate, up: geglu(gate, up, approximate="tanh"),
    "swiglu": swiglu,
}
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "geglu": F.gelu,
    "geglu_tanh": lambda gate: F.gelu(gate, approximate="tanh"),
    "swiglu": F.silu,
}


ACTIVATIONS = {"geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """gate and up, both (M, N): views of one tensor, as a layer of twice the width leaves them."""
    M, N = case.sizes["M"], case.sizes["N"]
    gate, up = (2 * randn((M, 2 * N), case, generator)).chunk(2, -1)
    return gate, up


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads gate and up and writes y; backward reads dy too and writes two gradients."""
    activation = ACTIVATIONS[case.options["function"]]
    forward = ACTIVATION_FLOPS[activation, FORWARD]
    if direction == FORWARD:
        return traffic(case, tensors=3, flops=forward + 1)
    return traffic(case, tensors=5, flops=forward + ACTIVATION_FLOPS[activation, direction] + 2)


def ours(gate: Tensor, up: Tensor, function: str) -> Tensor:
    """In one pass."""
    return OURS[function](gate, up)


def plain(gate: Tensor, up: Tensor, function: str) -> Tensor:
    """PyTorch's, in two."""
    return PLAIN[function](gate) * up


def _cases(M: int, N: int, *dtypes: torch.dtype) -> tuple[Case, ...]:
    return tuple(Case({"M": M, "N": N}, dtype, {"function": name}) for dtype in dtypes for name in OURS)


OP = Op(
    name="glu",
    input_names=("gate", "up"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": ours, "F.silu * up": plain, "torch.compile": compiled(plain), **OTHERS["glu"]},
    plain=plain,
    error_cases=(*_cases(16, 1024, torch.float32, torch.bfloat16), *_cases(16, 1023, torch.float16)),
    time_cases={
        "cpu": _cases(1024, 3072, torch.float32),
        "cuda": tuple(case for N in (1024, 4096, 14336) for case in _cases(2**27 // N, N, torch.bfloat16)),
    },
    balance=ROW_BALANCE,
)
