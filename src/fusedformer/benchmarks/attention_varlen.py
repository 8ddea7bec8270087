"""Attention of B packed sequences, one behind the other, of which none sees another.

S the longest of them, H query heads, K key heads, D head dimension; the shortest is S / B, the others between.
Contenders: ours, also held to each of its tiers, PyTorch's attention a sequence at a time by each of its kernels, its
varlen_attn, FlexAttention with a mask of documents, FlashAttention 2 to 4, and xFormers.
"""

import itertools

import torch
from torch import Tensor

from fusedformer.benchmarks import attention as dense
from fusedformer.benchmarks.contenders import flash_attn, flex, xformers
from fusedformer.benchmarks.contenders.sdpa import pinned
from fusedformer.benchmarks.contenders.tiers import tiers
from fusedformer.benchmarks.harness.implementation import Function, Implementation, MissingError
from fusedformer.benchmarks.harness.op import BACKWARD, BOTH, FORWARD, Case, Inputs, Op, Work, randn
from fusedformer.benchmarks.profile import formulas
from fusedformer.kernels.attention.op import attention


def lengths(B: int, S: int) -> list[int]:
    """Of the sequences: S / B, 2 S / B and so on to S, each at least 1."""
    return [max(1, S * number // B) for number in range(1, B + 1)]


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """q (total, H, D), k and v (total, K, D), cu_seqlens (B + 1,)."""
    B, S, H, K, D = (case.sizes[name] for name in "BSHKD")
    ends = list(itertools.accumulate(lengths(B, S), initial=0))
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=generator.device)
    return *(randn((ends[-1], heads, D), case, generator) for heads in (H, K, K)), cu_seqlens


def work(case: Case, direction: str) -> Work:
    """That of attention in each sequence."""
    found = lengths(case.sizes["B"], case.sizes["S"])
    pairs = formulas.packed_pairs(((S, S) for S in found), right=0 if case.options["causal"] else None)
    return dense.work_of(case, pairs, sum(found), direction)


def arguments(case: Case) -> dict[str, int]:
    """What kernels want to know without asking the GPU."""
    return {"max_seqlen": case.sizes["S"]}


def parts(case: Case, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key head with its query heads, in all sequences."""
    if tensor.dim() == 1:
        return tensor, tensor
    group = tensor.shape[1] // case.sizes["K"]
    return tensor[:, :group], tensor[:, -group:]


def ours(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, max_seqlen: int) -> Tensor:
    """Ours."""
    return attention(q, k, v, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, causal=causal, return_lse=False)


def one_by_one(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, max_seqlen: int) -> Tensor:
    """PyTorch's, a sequence at a time."""
    split = [x.unsqueeze(0).split(lengths(len(cu_seqlens) - 1, max_seqlen), dim=1) for x in (q, k, v)]
    return torch.cat([dense.plain(*sequence, causal=causal) for sequence in zip(*split)], dim=1).squeeze(0)


def _torch_varlen() -> Function:
    if not torch.cuda.is_available():
        raise MissingError("needs a CUDA device")
    from torch.nn.attention.varlen import varlen_attn

    def packed(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool, max_seqlen: int) -> Tensor:
        if q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        window = (-1, 0) if causal else (-1, -1)
        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window)
        assert isinstance(out, Tensor)  # nothing else was asked for
        return out

    return packed


OP = Op(
    name="attention_varlen",
    input_names=("q", "k", "v", "cu_seqlens"),
    make_inputs=make_inputs,
    work=work,
    contenders={
        "ours": ours,
        **tiers(ours),
        **pinned(one_by_one),
        "varlen_attn": Implementation(_torch_varlen),
        "flash-attn 3": flash_attn.packed(3),
        "flash-attn 2": flash_attn.packed(2),
        "flash-attn 4": flash_attn.packed(4),
        "FlexAttention": flex.PACKED,
        "xFormers": xformers.PACKED,
    },
    plain=one_by_one,
    error_cases=(
        dense.make_case(3, 40, 2, 2, 32, torch.float32, causal=False),
        dense.make_case(2, 70, 2, 1, 64, torch.float16, causal=True),
        dense.make_case(4, 33, 4, 2, 32, torch.bfloat16, causal=True),
    ),
    time_cases={
        "cpu": (dense.make_case(4, 512, 8, 8, 64, torch.float32, causal=True),),
        "cuda": tuple(dense.make_case(8, S, 16, 16, 128, torch.bfloat16, causal=True) for S in (2048, 8192)),
    },
    kernel="attention",
    directions=(FORWARD, BACKWARD, BOTH),
    arguments=arguments,
    balance=dense.BALANCE,
    parts=parts,
)
