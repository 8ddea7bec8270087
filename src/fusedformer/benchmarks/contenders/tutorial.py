"""The plain Triton attention that this benchmark writes itself from the paper: see tutorial_kernel.py."""

import math
import os
from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import Function, Implementation, MissingError, need

# Queries and keys of a block, warps and stages, by head dimension: what fits an A100's shared memory, not tuned.
TILES = {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)}
BACKWARD_TILES = {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 1)}


def is_interpreted() -> bool:
    """Whether Triton was told to run kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def build() -> Function:
    """Dense attention: causal or not, shared key heads, head dimensions up to 256.

    Raises:
        MissingError: there is no Triton, or nothing for it to run on.
    """
    need("triton", "triton")
    if not torch.cuda.is_available() and not is_interpreted():
        raise MissingError("Triton needs a CUDA device, or TRITON_INTERPRET=1")

    def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Tensor:
        if window is not None:
            raise MissingError("has no windows")
        if q.shape[-1] > max(TILES):
            raise MissingError(f"takes head dimensions up to {max(TILES)}, got {q.shape[-1]}")
        return _Attention.apply(q.contiguous(), k.contiguous(), v.contiguous(), causal)

    return attention


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        from fusedformer.benchmarks.contenders import tutorial_kernel

        B, S, H, D = q.shape
        out, lse = torch.empty_like(q), q.new_empty((B, H, S), dtype=torch.float32)
        scale = 1 / math.sqrt(D)
        sizes, tile = _settings(q, k, causal, TILES)
        grid = (-(-S // sizes["BLOCK_M"]), B * H)
        tutorial_kernel.fwd_kernel[grid](q, k, v, out, lse, S, scale * math.log2(math.e), **sizes, **tile)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from fusedformer.benchmarks.contenders import tutorial_kernel

        q, k, v, out, lse = ctx.saved_tensors
        dout = grads[0].contiguous()
        B, S, H, D = q.shape
        delta = (dout.float() * out.float()).sum(-1).transpose(1, 2).contiguous()  # (B, H, S)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        scale = 1 / math.sqrt(D)
        scales = scale, scale * math.log2(math.e)
        sizes, tile = _settings(q, k, ctx.causal, BACKWARD_TILES)
        tensors = q, k, v, dout, lse, delta
        keys, queries = -(-S // sizes["BLOCK_N"]), -(-S // sizes["BLOCK_M"])
        tutorial_kernel.bwd_dkdv_kernel[keys, B * k.shape[2]](*tensors, dk, dv, S, *scales, **sizes, **tile)
        tutorial_kernel.bwd_dq_kernel[queries, B * H](*tensors, dq, S, *scales, **sizes, **tile)
        return dq, dk, dv, None


def _settings(
    q: Tensor, k: Tensor, causal: bool, tiles: dict[int, tuple[int, int, int, int]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants of a kernel, and how it is launched."""
    H, D = q.shape[2:]
    block_m, block_n, warps, stages = next(tile for largest, tile in tiles.items() if largest >= D)
    if q.dtype == torch.float32:  # twice the bytes
        block_m, block_n = block_m // 2, block_n // 2
    sizes = {"H": H, "K": k.shape[2], "D": D, "CAUSAL": causal, "INTERPRETED": not q.is_cuda}
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": max(16, 1 << (D - 1).bit_length())}
    return sizes | blocks, {"num_warps": warps, "num_stages": stages}


TUTORIAL = Implementation(build, "triton")
