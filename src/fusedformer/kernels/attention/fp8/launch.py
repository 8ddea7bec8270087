"""Launcher of op attention_fp8_fwd for CUDA tensors, or CPU ones emulated: the Hopper kernel, or bfloat16 copies."""

from typing import Any

import torch
import triton
from torch import Tensor

from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.attention.fp8 import reference
from fusedformer.kernels.attention.fp8.values_kernel import attention_fp8_nan_kernel, attention_fp8_values_kernel
from fusedformer.kernels.attention.hopper import tuning
from fusedformer.kernels.attention.launch import Problem, arch_of
from fusedformer.kernels.attention.launch import attention_fwd as launch_attention_fwd

KERNEL = "fwd_fp8"
_WARPS = 8
_NAN_ROWS = 64  # queries of a program that looks for NaN
_CHUNK = 128


def attention_fp8_fwd(
    q: Tensor, k: Tensor, v: Tensor, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """The op attention_fp8_fwd by its kernels."""
    problem = Problem(q, k, v, Extras(*settings), arch_of(q))
    descales = q_descale, k_descale, v_descale
    out = allocate_out(problem)
    if refusal(problem, out) is not None:
        pairs = zip((q, k, v), descales)
        copies = (reference.dequantize(x, descale, reference.OUT_DTYPE) for x, descale in pairs)
        return launch_attention_fwd(*copies, *settings)
    from fusedformer.kernels.attention.hopper import launch  # not every Triton has what it needs

    lse = problem.allocate(q.shape[0], q.shape[2], q.shape[1])
    row = tuning.row_of(KERNEL, q.shape[3], v.shape[3])
    assert row is not None  # it serves
    values, has_nan = tiles_of_values(problem, row)
    launch.launch(KERNEL, problem, None, values, *descales, out, lse)
    if has_nan is not None:
        _mark_nan(problem, row, has_nan, out)
    return out, lse


def allocate_out(problem: Problem) -> Tensor:
    """A result (B, Sq, H, Dv)."""
    return problem.allocate(*problem.q.shape[:-1], problem.v.shape[-1], dtype=reference.OUT_DTYPE)


def refusal(problem: Problem, out: Tensor) -> str | None:
    """Why the Hopper kernel does not serve a problem of float8 tensors; None where it does."""
    return problem.hopper_refusal(KERNEL, out)


def tiles_of_values(problem: Problem, row: tuning.Row) -> tuple[Tensor, Tensor | None]:
    """v (B, Sk, Hkv, Dv) as (B, Hkv, tiles * row.head_dim_v, row.block), transposed tiles.

    And where keys are hidden, which tiles had NaN, (B, Hkv, tiles) int8: they have 0 for it.
    """
    v = problem.v
    batch, seqlen_k, heads, head_dim_v = v.shape
    tiles = triton.cdiv(seqlen_k, row.block)
    values = torch.empty((batch, heads, tiles * row.head_dim_v, row.block), dtype=torch.uint8, device=v.device)
    hides = problem.left is not None or problem.right is not None
    has_nan = torch.empty((batch, heads, tiles), dtype=torch.int8, device=v.device) if hides else None
    with torch.cuda.device_of(v):
        attention_fp8_values_kernel[(tiles * batch * heads,)](
            v.view(torch.uint8), values, has_nan, heads, seqlen_k, v.stride(),
            HEAD_DIM_V=head_dim_v, BLOCK_DV=row.head_dim_v, BLOCK_N=row.block, num_warps=_WARPS,
        )  # fmt: skip
    return values.view(reference.DTYPE), has_nan


def _mark_nan(problem: Problem, row: tuning.Row, has_nan: Tensor, out: Tensor) -> None:
    """Write NaN to `out` where a query sees one in v."""
    batch, seqlen_q, heads, head_dim_v = out.shape
    with torch.cuda.device_of(out):
        attention_fp8_nan_kernel[(triton.cdiv(seqlen_q, _NAN_ROWS) * batch * heads,)](
            problem.v.view(torch.uint8), has_nan, out, *problem.sizes, problem.v.stride(), out.stride(),
            BOTTOM_RIGHT=problem.extras.bottom_right, HEAD_DIM_V=head_dim_v, BLOCK_DV=row.head_dim_v,
            BLOCK_M=_NAN_ROWS, BLOCK_N=row.block, CHUNK=_CHUNK, num_warps=_WARPS,
        )  # fmt: skip
