"""Attention of S queries over S keys: B batch, H query heads, K key and value heads, D head dimension.

Contenders: ours, and scaled_dot_product_attention of PyTorch held to its flash kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusedformer.benchmarks.harness.op import FORWARD, Case, Inputs, Op, Work, randn
from fusedformer.kernels.attention.op import attention


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """q (B, S, H, D), k and v (B, S, K, D)."""
    B, S, H, K, D = (case.sizes[name] for name in "BSHKD")
    return tuple(randn((B, S, heads, D), case, generator) for heads in (H, K, K))


def work(case: Case, direction: str) -> Work:
    """FLOPs of the matrix products: 2 of 2 S S D each forward and 5 backward (Dao 2023, section 4.1), causal half."""
    B, S, H, D = (case.sizes[name] for name in "BSHD")
    products = 2 if direction == FORWARD else 5
    visible = 0.5 if case.options["causal"] else 1.0
    return Work(products * visible * 2 * B * H * S * S * D / 1e12, "TFLOP")


def parts(case: Case, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key head with its query heads, of (B, S, heads, D): they do not see the others.

    float64 of every head would take B H S S numbers of 8 bytes, several times.
    """
    group = tensor.shape[2] // case.sizes["K"]
    return tensor[:1, :, :group], tensor[-1:, :, -group:]


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """PyTorch's attention, by the kernel that PyTorch chooses."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def sdpa_flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """PyTorch's FlashAttention; raises where that kernel does not take the inputs."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v, causal=causal)


def _case(B: int, S: int, H: int, K: int, D: int, dtype: torch.dtype, causal: bool) -> Case:
    return Case({"B": B, "S": S, "H": H, "K": K, "D": D}, dtype, {"causal": causal})


OP = Op(
    name="attention",
    input_names=("q", "k", "v"),
    make_inputs=make_inputs,
    work=work,
    contenders={"ours": attention, "SDPA flash": sdpa_flash},
    plain=sdpa,
    error_cases=(
        _case(2, 65, 2, 2, 32, torch.float32, causal=False),
        _case(1, 130, 2, 1, 64, torch.float16, causal=True),
        _case(1, 96, 4, 2, 40, torch.bfloat16, causal=True),
    ),
    time_cases={
        "cpu": (_case(2, 512, 8, 8, 64, torch.float32, causal=True),),
        # 16k tokens of width 2,048 whatever the length, as Dao 2023 measures.
        "cuda": tuple(
            _case(2**14 // S, S, 2048 // D, 2048 // D, D, torch.bfloat16, causal)
            for D in (128, 64)
            for causal in (True, False)
            for S in (4096, 1024, 16384)
        ),
    },
    parts=parts,
)
