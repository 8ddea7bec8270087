"""Cross entropy of M rows of V logits with class indices, the loss of each row.

Contenders: ours, and torch.nn.functional.cross_entropy.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.contenders.rows import OTHERS
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, Case, Inputs, Op, Work, randn, row_cases, traffic
from fusedformer.benchmarks.profile.formulas import CROSS_ENTROPY_FLOPS
from fusedformer.kernels.cross_entropy import cross_entropy


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """logits (M, V), spread as a trained model's are; target (M,)."""
    M, V = case.sizes["M"], case.sizes["V"]
    target = torch.randint(V, (M,), generator=generator, device=generator.device)
    return 4 * randn((M, V), case, generator), target


def work(case: Case, direction: str) -> Work:
    """Bytes moved at least: forward reads the logits; backward reads them and writes their gradient.

    Targets, losses and logsumexps are 1/V of that, and left out.
    """
    return traffic(case, tensors=1 if direction == FORWARD else 2, flops=CROSS_ENTROPY_FLOPS[direction])


def output_shape(inputs: Inputs) -> torch.Size:
    """(M,)."""
    return inputs[1].shape


plain = partial(F.cross_entropy, reduction="none")


def ours(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Ours, the loss of each row."""
    return cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")


OP = Op(
    name="cross_entropy",
    input_names=("logits", "target"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": ours, "F.cross_entropy": plain, "torch.compile": compiled(plain), **OTHERS["cross_entropy"]},
    plain=plain,
    error_cases=(
        Case({"M": 16, "V": 1000}, torch.float32),
        Case({"M": 16, "V": 1001}, torch.float16, {"label_smoothing": 0.1}),
        Case({"M": 16, "V": 5003}, torch.bfloat16),
    ),
    time_cases={
        "cpu": (Case({"M": 512, "V": 32000}, torch.float32),),
        "cuda": row_cases((32768, 50257, 131072, 262144), "V", 2**29),
    },
    output_shape=output_shape,
    balance={"V": ("M",)},
)
