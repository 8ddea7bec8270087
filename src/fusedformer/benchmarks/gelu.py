"""GELU of N elements, by erf and by tanh.

Contenders: ours, torch.nn.functional.gelu.
"""

import torch
import torch.nn.functional as F

from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, Case, Inputs, Op, Work, randn, traffic
from fusedformer.benchmarks.profile.formulas import ACTIVATION_FLOPS
from fusedformer.kernels.gelu import APPROXIMATIONS, gelu


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """x (N,), wide enough to reach both flat ends."""
    return (3 * randn((case.sizes["N"],), case, generator),)


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads x and writes y; backward reads dy and x and writes dx."""
    name = "gelu_tanh" if case.options["approximate"] == "tanh" else "gelu"
    return traffic(case, tensors=2 if direction == FORWARD else 3, flops=ACTIVATION_FLOPS[name, direction])


def _cases(N: int, *dtypes: torch.dtype) -> tuple[Case, ...]:
    return tuple(Case({"N": N}, dtype, {"approximate": name}) for dtype in dtypes for name in APPROXIMATIONS)


OP = Op(
    name="gelu",
    input_names=("x",),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": gelu, "F.gelu": F.gelu, "torch.compile": compiled(F.gelu)},
    plain=F.gelu,
    error_cases=_cases(10_007, torch.float32, torch.float16, torch.bfloat16),
    time_cases={"cpu": _cases(2**22, torch.float32), "cuda": _cases(2**27, torch.bfloat16)},
)
