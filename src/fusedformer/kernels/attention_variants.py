"""The attention kernels as they are shipped: what the static world compiles, ahead of time, for each GPU."""

from typing import Any

import torch

from fusedformer.kernels import attention_bwd_kernel, attention_fwd_kernel, attention_tuning
from fusedformer.kernels.attention_launch import constexprs
from fusedformer.kernels.variants import Variant

_KERNELS = {
    "fwd": attention_fwd_kernel.attention_fwd_kernel,
    "rows": attention_bwd_kernel.attention_bwd_rows_kernel,
    "dq": attention_bwd_kernel.attention_bwd_dq_kernel,
    "dkdv": attention_bwd_kernel.attention_bwd_dkdv_kernel,
}
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_POINTERS = dict.fromkeys(("lse_ptr", "dlse_ptr", "delta_ptr", "shift_ptr"), "*fp32") | {"mask_ptr": "*u8"}
_MULTIPLE_OF_16 = [["tt.divisibility", 16]]

# dtype, head dimension, causal, masked: every row of the tile table, and a head dimension that needs padding.
_SETTINGS = (
    (torch.bfloat16, 64, True, False),
    (torch.bfloat16, 128, True, False),
    (torch.bfloat16, 256, True, False),
    (torch.bfloat16, 32, True, False),
    (torch.bfloat16, 80, True, False),
    (torch.bfloat16, 64, False, False),
    (torch.bfloat16, 128, False, False),
    (torch.float16, 128, True, False),
    (torch.bfloat16, 64, True, True),
    (torch.bfloat16, 128, True, True),
    (torch.bfloat16, 256, True, True),
    (torch.float32, 64, True, False),
    (torch.float32, 128, True, False),
    (torch.float32, 256, True, False),
    (torch.float32, 64, True, True),
    (torch.float32, 128, True, True),
    (torch.float32, 256, True, True),
)
# The second launch, where something is hidden; it has one tile, so the ends of its range will do.
_EXACT_SETTINGS = (
    (torch.bfloat16, 64, True, False),
    (torch.bfloat16, 256, True, True),
    (torch.float32, 64, True, True),
    (torch.float32, 256, True, False),
)


def variants(arch: int) -> list[Variant]:
    """The kernels and tiles shipped for compute capability `arch` (90 for 9.0); aligned."""
    kernels = ("fwd", "dq", "dkdv")
    first = [_variant(kernel, arch, *setting) for setting in _SETTINGS for kernel in kernels]
    exact = [_variant(kernel, arch, *setting, exact=True) for setting in _EXACT_SETTINGS for kernel in kernels]
    rows = [_variant("rows", arch, dtype, 256, False, False) for dtype in (torch.bfloat16, torch.float32)]
    return first + exact + rows


def _variant(
    name: str, arch: int, dtype: torch.dtype, head_dim: int, causal: bool, masked: bool, exact: bool = False
) -> Variant:
    kernel = _KERNELS[name]
    tile = attention_tuning.tile(name, arch, dtype, head_dim, masked, exact)
    constants = dict[str | tuple[int, ...], Any](constexprs(kernel, tile, causal, exact, head_dim).items())
    if "mask_ptr" in kernel.arg_names and not masked:
        constants["mask_ptr"] = None
    signature: dict[str, Any] = {}
    attrs: dict[tuple[int, ...], list[Any]] = {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            signature[argument] = _POINTERS.get(argument, f"*{_TYPES[dtype]}")
            attrs[index,] = _MULTIPLE_OF_16
        elif argument.endswith("_strides"):
            signature[argument] = ("i32", "i32", "i32", "constexpr")
            constants[index, 3] = 1
            attrs |= {(index, dimension): _MULTIPLE_OF_16 for dimension in range(3)}
        else:
            signature[argument] = "fp32" if argument.startswith("scale") else "i32"
    return Variant(
        op="attention",
        kernel=kernel.__name__,
        module=kernel.fn.__module__,
        name=" ".join([_TYPES[dtype], f"d{head_dim}", *["causal"] * causal, *["mask"] * masked, *["exact"] * exact]),
        signature=signature,
        constexprs=constants,
        attrs=attrs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
