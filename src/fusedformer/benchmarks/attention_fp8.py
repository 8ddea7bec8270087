"""Attention of q, k and v in float8 (e4m3) with a scale for each head: B batch, S, H, K, D as of attention.py.

Contenders: ours on float8, with both products in it where the Hopper tier serves (FUSEDFORMER_HOPPER=1), and from
bfloat16 copies elsewhere; FlashAttention 3 on float8; and what one computes without float8, of bfloat16 copies that are
there already: ours, and PyTorch's attention held to each of its kernels. PyTorch has none for float8. All are shares of
the peak of float8.

The answer is attention in float64 of the numbers that the float8 ones stand for, so that rounding inputs is no error
here; the README has what that costs. The budget is twice the error of plain PyTorch with weights rounded to e4m3.
"""

import torch
from torch import Tensor

from fusedformer.benchmarks import attention as dense
from fusedformer.benchmarks.contenders import flash_attn
from fusedformer.benchmarks.contenders.plain import BLOCK, in_blocks, visible
from fusedformer.benchmarks.contenders.sdpa import pinned, sdpa
from fusedformer.benchmarks.harness.op import FORWARD, Case, Inputs, Op, Work
from fusedformer.kernels.attention.fp8.op import quantize_fp8
from fusedformer.kernels.attention.fp8.reference import DTYPE, OUT_DTYPE, dequantize
from fusedformer.kernels.attention.op import attention

DESCALE_SIZE = 4  # bytes
LARGEST_WEIGHT = 2.0**8  # before it is rounded: e4m3 reaches down to 2^-9, so weights of 2^-17 of the largest are kept


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Float8 q (B, S, H, D), k and v (B, S, K, D), their descales (B, heads), and what they stand for in bfloat16."""
    normal = dense.make_inputs(Case(case.sizes, OUT_DTYPE), generator)
    pairs = [quantize_fp8(x) for x in normal]
    copies = (dequantize(*pair, OUT_DTYPE) for pair in pairs)
    return *(x for x, _ in pairs), *(descale for _, descale in pairs), *copies


def work(case: Case, direction: str) -> Work:
    """That of attention with operands of one byte; but the result has two, and each head a descale."""
    B, S, H, K, D = (case.sizes[name] for name in "BSHKD")
    done = dense.work(case, direction)
    assert done.n_bytes is not None  # it is known of attention
    wider = (OUT_DTYPE.itemsize - DTYPE.itemsize) * B * S * H * D
    return Work(done.flops, done.n_bytes + wider + DESCALE_SIZE * B * (H + 2 * K), done.unit)


def parts(case: Case, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last key head with its query heads, of tensors and descales."""
    if tensor.dim() == 4:
        return dense.parts(case, tensor)
    group = tensor.shape[1] // case.sizes["K"]
    return tensor[:1, :group], tensor[-1:, -group:]


def ours(
    q: Tensor, k: Tensor, v: Tensor, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, *_: Tensor, causal: bool
) -> Tensor:
    """Ours."""
    return attention(q, k, v, descale=(q_descale, k_descale, v_descale), causal=causal)


def ours_of_copies(*inputs: Tensor, causal: bool) -> Tensor:
    """Ours in bfloat16."""
    return attention(*inputs[6:], causal=causal)


def sdpa_of_copies(*inputs: Tensor, causal: bool) -> Tensor:
    """PyTorch's in bfloat16."""
    return sdpa(*inputs[6:], causal=causal)


def plain(
    q: Tensor, k: Tensor, v: Tensor, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, *_: Tensor, causal: bool
) -> Tensor:
    """As the numbers of the float8 tensors say in float64; in float8, with weights rounded to it, a block at a time."""
    wide = torch.promote_types(q_descale.dtype, torch.float32)
    operands = [dequantize(x, scale, wide) for x, scale in ((q, q_descale), (k, k_descale), (v, v_descale))]
    if q.dtype == torch.float64:
        return in_blocks(*operands, causal=causal)
    blocks = operands[0].split(BLOCK, dim=1)
    rounded = [_rounded(x, *operands[1:], causal=causal, first=BLOCK * n) for n, x in enumerate(blocks)]
    return torch.cat(rounded, dim=1).to(OUT_DTYPE)


def _rounded(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, first: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of queries from `first` on, its weights in e4m3, their sum not."""
    q = q.unflatten(2, (k.shape[2], -1))  # (B, Sq, K, G, D)
    scores = torch.einsum("bqkgd,bskd->bkgqs", q, k) / q.shape[-1] ** 0.5
    seen = visible(q.shape[1], k.shape[1], causal, None, q.device, first)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * LARGEST_WEIGHT
    total = weights.sum(-1).permute(0, 3, 1, 2).unsqueeze(-1)  # (B, Sq, K, G, 1)
    return (torch.einsum("bkgqs,bskd->bqkgd", weights.to(DTYPE).to(v.dtype), v) / total).flatten(2, 3)


OP = Op(
    name="attention_fp8",
    input_names=("q", "k", "v", "q_descale", "k_descale", "v_descale", "q_copy", "k_copy", "v_copy"),
    make_inputs=make_inputs,
    work=work,
    contenders={
        "ours": ours,
        "ours, bfloat16": ours_of_copies,
        "flash-attn 3": flash_attn.FP8,
        **{f"{name}, bfloat16": function for name, function in pinned(sdpa_of_copies).items()},
    },
    plain=plain,
    error_cases=(
        dense.make_case(2, 65, 2, 2, 32, DTYPE, causal=False),
        dense.make_case(1, 130, 4, 2, 64, DTYPE, causal=True),
    ),
    time_cases={
        "cpu": (dense.make_case(2, 512, 8, 8, 64, DTYPE, causal=True),),
        "cuda": tuple(
            dense.make_case(2**14 // S, S, 2048 // D, 2048 // D, D, DTYPE, causal=causal)
            for D, S, causal in ((128, 16384, True), (128, 16384, False), (128, 4096, True), (64, 16384, True))
        ),
    },
    kernel="attention",
    directions=(FORWARD,),
    balance=dense.BALANCE,
    parts=parts,
)
