"""One query for each of B sequences over S keys that are cached: a step of text generation, bound by reading the cache.

H query heads, K key heads, D head dimension. Contenders: ours for caches and ours as in training, PyTorch's attention
held to each of its kernels, FlashAttention 2 to 4, and plain products as they are and compiled.
"""

import torch
from torch import Tensor

from fusedformer.benchmarks import attention as dense
from fusedformer.benchmarks.contenders import flash_attn
from fusedformer.benchmarks.contenders.plain import eager
from fusedformer.benchmarks.contenders.sdpa import pinned, sdpa
from fusedformer.benchmarks.harness.implementation import compiled
from fusedformer.benchmarks.harness.op import FORWARD, Case, Inputs, Op, Work, randn
from fusedformer.benchmarks.profile import formulas
from fusedformer.kernels.attention.decode.op import flash_attn_with_kvcache
from fusedformer.kernels.attention.op import attention


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """q (B, 1, H, D), k and v (B, S, K, D)."""
    B, S, H, K, D = (case.sizes[name] for name in "BSHKD")
    return tuple(randn(shape, case, generator) for shape in ((B, 1, H, D), (B, S, K, D), (B, S, K, D)))


def work(case: Case, direction: str) -> Work:
    """Bytes of the cache, of q and of the output; FLOPs of the matrix products."""
    B, S, H, K, D = (case.sizes[name] for name in "BSHKD")
    done = formulas.attention_forward(B * S, B, B * S, H=H, K=K, D=D, Dv=D, itemsize=case.dtype.itemsize)
    return Work(done.flops, done.n_bytes, "GB")


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ours for caches, which splits the keys of a sequence over the GPU."""
    return flash_attn_with_kvcache(q, k, v, cache_seqlens=k.shape[1])


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's, by the kernel that it chooses."""
    return sdpa(q, k, v, causal=False)


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As one writes it down."""
    return eager(q, k, v, causal=False)


def _case(B: int, S: int, H: int, K: int, D: int, dtype: torch.dtype) -> Case:
    return Case({"B": B, "S": S, "H": H, "K": K, "D": D}, dtype)


OP = Op(
    name="attention_decode",
    input_names=("q", "k", "v"),
    make_inputs=make_inputs,
    work=work,
    contenders={
        "ours": ours,
        "ours, as in training": attention,
        **pinned(plain),
        "flash-attn 3": flash_attn.decode(3),
        "flash-attn 2": flash_attn.decode(2),
        "flash-attn 4": flash_attn.decode(4),
        "eager": products,
        "torch.compile": compiled(products),
    },
    plain=plain,
    error_cases=(
        _case(2, 65, 4, 4, 32, torch.float32),
        _case(1, 130, 4, 1, 64, torch.float16),
        _case(3, 96, 8, 2, 40, torch.bfloat16),
    ),
    time_cases={
        "cpu": (_case(4, 4096, 8, 2, 64, torch.float32),),
        "cuda": tuple(_case(B, S, 32, 8, 128, torch.bfloat16) for S in (8192, 32768, 131072) for B in (1, 16)),
    },
    kernel="attention",
    directions=(FORWARD,),
    balance=dense.BALANCE,
    parts=dense.parts,
)
