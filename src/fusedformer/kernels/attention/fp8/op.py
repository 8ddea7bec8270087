"""Attention of float8 tensors, forward only: checks, the op, and `quantize_fp8`.

Legend and FLOPs: ../op.py. Memory: half of that in bfloat16 for q, k and v, but for the writes of out.
Device code: ../hopper/fwd_fp8_kernel.py (Gluon, sm_90) and values_kernel.py (Triton); elsewhere ../fwd_kernel.py on
bfloat16 copies. Definition: reference.py.
Source: Shah et al., "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision", 2024;
Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.attention import inputs
from fusedformer.kernels.attention.extras import SCHEMA
from fusedformer.kernels.attention.fp8 import reference
from fusedformer.kernels.attention.inputs import Call

NAMES = ("q_descale", "k_descale", "v_descale")


def quantize_fp8(x: Tensor, *, layout: str = "bshd") -> tuple[Tensor, Tensor]:
    """Round to float8 with a scale for each head of each batch: what `attention` takes as `descale`.

    The largest finite element of a head becomes 448, the largest number of e4m3; from 1/28,672 of it on, an element is
    rounded by at most 1/16 of its size, and below by at most 1/458,752 of the largest. Nothing waits for the GPU.

    Args:
        x: (B, S, H, D), float32, float16 or bfloat16, any strides.
        layout: "bshd" as above, or "bhsd" for (B, H, S, D).

    Returns:
        The tensor in float8_e4m3fn, of x's shape, NaN where x is NaN or infinite; and descale (B, H), float32, with
        x = descale * its value.

    Raises:
        ValueError: x has other than 4 dimensions or another dtype, or `layout` is none.
    """
    call = Call("quantize_fp8")
    library.check_tensor(call.function, "x", x)
    if layout not in ("bshd", "bhsd"):
        raise call.error(f"layout is {layout!r}, expected 'bshd' or 'bhsd'")
    if x.dim() != 4:
        raise call.error(f"x has shape {tuple(x.shape)}, expected 4 dimensions ({layout})")
    if x.dtype not in library.DEVICE_DTYPES:
        raise call.error(f"x is {library.short(x.dtype)}, expected float32, float16 or bfloat16")
    if layout == "bshd":
        return reference.quantize(x)
    quantized, descale = reference.quantize(x.transpose(1, 2))
    return quantized.transpose(1, 2), descale


def check(call: Call, q: Tensor, k: Tensor, v: Tensor, descale: Sequence[Tensor]) -> list[Tensor]:
    """The descales, dense; ValueError unless they and q, k and v are what `attention` says."""
    for name, x in ((call.q, q), (call.k, k), (call.v, v)):
        if x.dtype != reference.DTYPE:
            raise call.error(f"{name} is {library.short(x.dtype)}, expected float8_e4m3fn where descale is given")
    inputs.check_shapes(call, q, k, v)
    if not isinstance(descale, Sequence) or len(descale) != len(NAMES):
        raise call.error(f"descale is {descale!r}, expected three tensors: {', '.join(NAMES)}")
    named = dict(zip(NAMES, descale))
    for (name, scale), x in zip(named.items(), (q, k, v)):
        library.check_tensor(call.function, name, scale)
        shape = (x.shape[0], x.shape[2])
        if scale.dtype != torch.float32 or tuple(scale.shape) != shape:
            given = f"{library.short(scale.dtype)} of shape {tuple(scale.shape)}"
            raise call.error(f"{name} is {given}, expected float32 of shape {shape}")
    library.check_device(call.function, **{call.q: q, call.k: k, call.v: v}, **named)
    return [scale.contiguous() for scale in named.values()]


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=reference.OUT_DTYPE), lse


_launch = library.triton_launchers("fusedformer.kernels.attention.fp8.launch")
attention_fp8_fwd = library.define(
    "attention_fp8_fwd(Tensor q, Tensor k, Tensor v, Tensor q_descale, Tensor k_descale, Tensor v_descale,"
    f" {SCHEMA}) -> (Tensor, Tensor)",
    fallback=reference.attention_fp8_fwd,
    fake=_fake,
    launch=_launch and _launch.attention_fp8_fwd,
)
library.refuse_gradients("attention_fp8_fwd", "train in bfloat16, or take the result under torch.no_grad()")
