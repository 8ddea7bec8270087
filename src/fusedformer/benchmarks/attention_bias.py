"""Attention with a bias for each head, query and key, which has a gradient too: as T5 and AlphaFold compute it.

B batch, S queries and keys, H query heads, K key heads, D head dimension. Contenders: those of attention that take a
bias.
"""

import torch
from torch import Tensor

from fusedformer.benchmarks import attention as dense
from fusedformer.benchmarks.contenders import flex, xformers
from fusedformer.benchmarks.contenders.plain import BLOCK, eager, in_blocks
from fusedformer.benchmarks.contenders.sdpa import pinned, sdpa
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import BACKWARD, BOTH, FORWARD, Case, Inputs, Op, Work, randn
from fusedformer.kernels.attention.op import attention


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """q (B, S, H, D), k and v (B, S, K, D), bias (1, H, S, S)."""
    S, H = case.sizes["S"], case.sizes["H"]
    return *dense.make_inputs(case, generator), randn((1, H, S, S), case, generator)


def work(case: Case, direction: str) -> Work:
    """That of attention, an addition for each pair, and the bias: read, and backward its gradient written too."""
    B, S, H = (case.sizes[name] for name in "BSH")
    of_attention = dense.work(case, direction)
    assert of_attention.flops is not None
    assert of_attention.n_bytes is not None
    passes, added = {FORWARD: (1, 1), BACKWARD: (2, 2), BOTH: (3, 3)}[direction]
    return Work(
        of_attention.flops + added * B * H * S * S,
        of_attention.n_bytes + passes * H * S * S * case.dtype.itemsize,
        "TFLOP",
    )


def parts(case: Case, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key head with its query heads; the whole batch, over which the bias sums its gradient."""
    heads_dim = 1 if tensor.shape[0] == 1 and tensor.shape[2:] == (case.sizes["S"],) * 2 else 2
    group = tensor.shape[heads_dim] // case.sizes["K"]
    return tensor.narrow(heads_dim, 0, group), tensor.narrow(heads_dim, tensor.shape[heads_dim] - group, group)


def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, causal: bool) -> Tensor:
    """Ours."""
    return attention(q, k, v, bias=bias, causal=causal)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, causal: bool) -> Tensor:
    """PyTorch's, in float64 in blocks where the scores are many."""
    function = in_blocks if q.dtype == torch.float64 and q.shape[1] > BLOCK else sdpa
    return function(q, k, v, bias, causal=causal)


OP = Op(
    name="attention_bias",
    input_names=("q", "k", "v", "bias"),
    make_inputs=make_inputs,
    work=work,
    contenders={
        "ours": ours,
        **pinned(sdpa),
        "FlexAttention": flex.DENSE,
        "xFormers": xformers.DENSE,
        "eager": eager,
        "torch.compile": compiled(eager),
    },
    plain=plain,
    error_cases=(
        dense.make_case(2, 65, 2, 2, 32, torch.float32, causal=False),
        dense.make_case(1, 130, 2, 1, 64, torch.float16, causal=True),
        dense.make_case(1, 96, 4, 2, 32, torch.bfloat16, causal=False),
    ),
    time_cases={
        "cpu": (dense.make_case(2, 256, 4, 4, 64, torch.float32, causal=False),),
        "cuda": tuple(dense.make_case(4, S, 16, 16, 128, torch.bfloat16, causal=False) for S in (1024, 4096)),
    },
    kernel="attention",
    directions=(FORWARD, BACKWARD, BOTH),
    balance=dense.BALANCE,
    parts=parts,
)
