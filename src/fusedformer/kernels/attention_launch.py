"""Launchers of the attention kernels: ops attention_fwd and attention_bwd for CUDA tensors, or CPU ones interpreted."""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from fusedformer.kernels import attention_tuning as tuning
from fusedformer.kernels.attention_bwd_kernel import (
    attention_bwd_dkdv_kernel,
    attention_bwd_dq_kernel,
    attention_bwd_rows_kernel,
)
from fusedformer.kernels.attention_fwd_kernel import attention_fwd_kernel
from fusedformer.kernels.triton_compat import INTERPRETED

LOG2_E = math.log2(math.e)
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool, diagonal: int
) -> tuple[Tensor, Tensor]:
    """The op attention_fwd by its kernel."""
    batch, seqlen_q, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, seqlen_q), dtype=torch.float32, device=q.device)
    if scale < 0:
        q, scale = -q, -scale
    # The kernel multiplies hidden scores of -inf by the scale, which must not be 0 then.
    scale_log2 = max(scale, SMALLEST_NORMAL) * LOG2_E
    causal = causal and diagonal < k.shape[1] - 1  # otherwise the first query sees the last key, and so do all
    mask, mask_strides = _mask_bytes(mask, q, k)
    for exact in _launches(causal, mask):
        tile = tuning.tile("fwd", _arch(q), q.dtype, head_dim, mask is not None, exact)
        _launch(
            attention_fwd_kernel, triton.cdiv(seqlen_q, tile.block_m) * batch * heads, tile, causal, exact, head_dim,
            q, k, v, mask, out, lse, *_sizes(q, k),
            q.stride(), k.stride(), v.stride(), mask_strides, out.stride(), scale_log2, _clamped(diagonal, q, k),
        )  # fmt: skip
    return out, lse


def attention_bwd(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    scale: float, causal: bool, diagonal: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op attention_bwd by its three kernels."""
    batch, seqlen_q, heads, head_dim = q.shape
    _, seqlen_k, kv_heads, _ = k.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta, shift = _rows(dout, dlse, out, lse)
    causal = causal and diagonal < seqlen_k - 1
    mask, mask_strides = _mask_bytes(mask, q, k)
    diagonal = _clamped(diagonal, q, k)
    for exact in _launches(causal, mask):
        tile = tuning.tile("dq", _arch(q), q.dtype, head_dim, mask is not None, exact)
        _launch(
            attention_bwd_dq_kernel, triton.cdiv(seqlen_q, tile.block_m) * batch * heads, tile, causal, exact, head_dim,
            q, k, v, mask, dout, delta, shift, dq, *_sizes(q, k),
            q.stride(), k.stride(), v.stride(), mask_strides, dout.stride(), dq.stride(), scale, scale * LOG2_E, diagonal,
        )  # fmt: skip
        tile = tuning.tile("dkdv", _arch(q), q.dtype, head_dim, mask is not None, exact)
        programs = triton.cdiv(seqlen_k, tile.block_n) * batch * kv_heads
        _launch(
            attention_bwd_dkdv_kernel, programs, tile, causal, exact, head_dim,
            q, k, v, mask, dout, delta, shift, dk, dv, *_sizes(q, k),
            q.stride(), k.stride(), v.stride(), mask_strides, dout.stride(), dk.stride(), dv.stride(), scale, scale * LOG2_E, diagonal,
        )  # fmt: skip
    return dq, dk, dv


def _launches(causal: bool, mask: Tensor | None) -> tuple[bool, ...]:
    """Whether each launch is the exact one: it follows the first where something is hidden, and could be NaN."""
    return (False, True) if causal or mask is not None else (False,)


def constexprs(kernel: Any, tile: tuning.Tile, causal: bool, exact: bool, head_dim: int) -> dict[str, Any]:
    """The compile-time arguments of `kernel`, by name."""
    values = {
        "CAUSAL": causal,
        "EXACT": exact,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
    }
    return {name: value for name, value in values.items() if name in kernel.arg_names}


def _rows(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    batch, seqlen_q, heads, head_dim = out.shape
    delta, shift = torch.empty((2, *lse.shape), dtype=torch.float32, device=lse.device)
    tile = tuning.tile("rows", _arch(out), out.dtype, head_dim, masked=False)
    _launch(
        attention_bwd_rows_kernel, triton.cdiv(seqlen_q, tile.block_m) * batch * heads, tile, False, False, head_dim,
        dout, out, lse.contiguous(), None if dlse is None else dlse.contiguous(), delta, shift, heads, seqlen_q,
        dout.stride(), out.stride(),
    )  # fmt: skip
    return delta, shift


def _launch(
    kernel: Any, programs: int, tile: tuning.Tile, causal: bool, exact: bool, head_dim: int, *args: Any
) -> None:
    """Start `programs` programs; all of them on the first grid axis, the only one that takes more than 65,535."""
    if programs == 0:
        return
    with torch.cuda.device_of(args[0]):
        kernel[(programs,)](
            *args,
            **constexprs(kernel, tile, causal, exact, head_dim),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )


def _arch(q: Tensor) -> int | None:
    """Compute capability, 90 for 9.0; None where the kernels are interpreted.

    Raises:
        RuntimeError: CPU tensors, and Triton compiles.
    """
    if INTERPRETED:
        return None
    if not q.is_cuda:
        raise RuntimeError(
            "attention: emulation was asked for, but Triton was imported without its interpreter: "
            "set FUSEDFORMER_EMULATE=1 or TRITON_INTERPRET=1 before the first import of triton"
        )
    major, minor = torch.cuda.get_device_capability(q.device)
    return 10 * major + minor


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """heads, group, seqlen_q, seqlen_k."""
    return q.shape[2], q.shape[2] // max(1, k.shape[2]), q.shape[1], k.shape[1]


def _clamped(diagonal: int, q: Tensor, k: Tensor) -> int:
    """A diagonal that hides and shows the same, and cannot overflow 32 bits when a row is added."""
    return max(-q.shape[1], min(diagonal, k.shape[1]))


def _mask_bytes(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask as bytes, and its strides when it is broadcast to (B, H, Sq, Sk)."""
    if mask is None:
        return None, (0, 0, 0, 0)
    mask = mask.view(torch.uint8).expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    return mask, mask.stride()
