"""The attention kernels as they are shipped: what the static world compiles, ahead of time, for each GPU."""

from dataclasses import dataclass
from typing import Any

import torch

from fusedformer.kernels.attention import (
    bwd_bias_kernel,
    bwd_dkdv_kernel,
    bwd_dq_kernel,
    bwd_kernel,
    fwd_kernel,
    tuning,
)
from fusedformer.kernels.attention.decode import variants as decode_variants
from fusedformer.kernels.attention.launch import constexprs
from fusedformer.kernels.attention.scores import Scoring
from fusedformer.kernels.attention.tiles import Packing
from fusedformer.kernels.variants import CONSTEXPR, Variant, specialize

_KERNELS = {
    "fwd": fwd_kernel.attention_fwd_kernel,
    "rows": bwd_kernel.attention_bwd_rows_kernel,
    "dq": bwd_dq_kernel.attention_bwd_dq_kernel,
    "dkdv": bwd_dkdv_kernel.attention_bwd_dkdv_kernel,
    "dbias": bwd_bias_kernel.attention_bwd_bias_kernel,
}
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FLOAT32_POINTERS = ("lse_ptr", "dlse_ptr", "delta_ptr", "shift_ptr", "sinks_ptr", "dslopes_ptr", "dbias_ptr")


@dataclass(frozen=True)
class Setting:
    """What a kernel is compiled for; `features` are names of `_FEATURES`, "causal", "window", "packed" and "sinks"."""

    dtype: torch.dtype
    head_dim: int
    features: tuple[str, ...] = ()
    exact: bool = False
    head_dim_v: int | None = None

    def __str__(self) -> str:
        sizes = f"d{self.head_dim}" + (f"/{self.head_dim_v}" if self.head_dim_v else "")
        return " ".join([_TYPES[self.dtype], sizes, *self.features, *["exact"] * self.exact])


# The fields of Scoring that a feature fills, with their types.
_FEATURES: dict[str, dict[str, Any]] = {
    "mask": {"mask_ptr": "*u8", "mask_strides": ("i32", "i32", "i32", CONSTEXPR)},
    "bias": {"bias_ptr": "*fp32", "bias_strides": ("i32", "i32", "i32", CONSTEXPR)},
    "alibi": {"slopes_ptr": "*fp32", "slopes_strides": ("i32", CONSTEXPR)},
    "softcap": {"softcap_log2": "fp32"},
    "dropout": {"seed_ptr": "*i64", "dropout_p": "fp32"},
}
_B, _H, _F = torch.bfloat16, torch.float16, torch.float32
_ALL = ("causal", "mask", "bias", "alibi", "softcap", "dropout")

# Every row of the tile table, a head dimension that needs padding, and each feature, alone or with all others.
_SETTINGS = (
    *(Setting(_B, head_dim, ("causal",)) for head_dim in (32, 64, 80, 128, 192, 256, 512)),
    Setting(_B, 64),
    Setting(_B, 128),
    Setting(_H, 128, ("causal",)),
    *(Setting(_B, head_dim, _ALL) for head_dim in (64, 128, 256, 512)),
    *(Setting(_B, 128, ("causal", feature)) for feature in ("mask", "bias", "alibi", "softcap", "dropout")),
    Setting(_B, 128, ("window",)),
    Setting(_B, 128, ("causal", "packed")),
    Setting(_B, 64, ("window", "sinks", "packed")),
    Setting(_B, 192, ("causal",), head_dim_v=128),
    *(Setting(_F, head_dim, ("causal",)) for head_dim in (64, 128, 256)),
    *(Setting(_F, head_dim, _ALL) for head_dim in (64, 128, 256)),
)
# Sums without matrix products have one tile each, so the ends of their range will do.
_EXACT_SETTINGS = (
    Setting(_B, 64, ("causal",), exact=True),
    Setting(_B, 512, _ALL, exact=True),
    Setting(_F, 64, _ALL, exact=True),
    Setting(_F, 512, ("causal",), exact=True),
)
_BIAS_SETTINGS = (
    *(Setting(dtype, head_dim, _ALL) for dtype in (_B, _F) for head_dim in (64, 128, 256)),
    Setting(_B, 512, _ALL, exact=True),
)


def variants(arch: int) -> list[Variant]:
    """The kernels and tiles shipped for compute capability `arch` (90 for 9.0); aligned."""
    pairs = [(kernel, setting) for setting in _SETTINGS + _EXACT_SETTINGS for kernel in ("fwd", "dq", "dkdv")]
    pairs += [("dbias", setting) for setting in _BIAS_SETTINGS]
    pairs += [("rows", Setting(dtype, 256)) for dtype in (_B, _F)]
    return [variant(kernel, arch, setting) for kernel, setting in pairs] + decode_variants.variants(arch)


def variant(name: str, arch: int, setting: Setting, tile: tuning.Tile | None = None) -> Variant:
    """One kernel for one setting, with the tile of the table or another."""
    kernel = _KERNELS[name]
    longest = max(setting.head_dim, setting.head_dim_v or 0)
    is_busy = bool(_FEATURES.keys() & set(setting.features))
    is_packed = "packed" in setting.features
    tile = tile or tuning.tile(name, arch, setting.dtype, longest, is_busy, setting.exact, is_packed)
    is_repair = setting.exact and not tuning.is_elementwise(name, arch, setting.dtype, longest)
    repaired = tuning.tile(name, arch, setting.dtype, longest, is_busy, packed=is_packed) if is_repair else tile
    values: dict[str, Any] = {
        "BOTTOM_RIGHT": True, "EXACT": setting.exact, "REPAIR": is_repair, "PRECISION": "ieee",
        "TILE": repaired.block_n if name == "dkdv" else repaired.block_m,
        "PER_BATCH": False, "PER_HEAD": True, "PER_QUERY": True, "PER_KEY": True,
        "HEAD_DIM": setting.head_dim, "HEAD_DIM_V": setting.head_dim_v or setting.head_dim,
    }  # fmt: skip
    constants = dict[str | tuple[int, ...], Any](constexprs(kernel, values, tile).items())
    signature, attrs = specialize(kernel.arg_names, constants, lambda argument: _kind(argument, setting))
    if "scoring" in signature:
        path = (kernel.arg_names.index("scoring"), Scoring._fields.index("is_plain"))
        constants[path] = not {"bias", "alibi", "softcap"} & set(setting.features)
    return Variant(
        op="attention",
        kernel=kernel.__name__,
        module=kernel.fn.__module__,
        name=str(setting),
        signature=signature,
        constexprs=constants,
        attrs=attrs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        has_steady_loop=_has_steady_loop(name, setting),
    )


def _has_steady_loop(name: str, setting: Setting) -> bool:
    """Whether the tiles that need no mask have a loop of their own, in which nothing else takes selects either."""
    is_plain = not setting.exact and not _FEATURES.keys() & set(setting.features)
    return name in ("fwd", "dq", "dkdv") and setting.dtype.itemsize == 2 and is_plain


def _kind(argument: str, setting: Setting) -> Any:
    """The Triton type of an argument; that of a tuple is a tuple, and what is absent is a constexpr."""
    features = set(setting.features)
    if argument == "scoring":
        fields: dict[str, Any] = dict.fromkeys(Scoring._fields, CONSTEXPR)
        fields |= {"scale": "fp32", "scale_log2": "fp32"}
        for feature in features & _FEATURES.keys():
            fields |= _FEATURES[feature]
        return Scoring(**fields)
    if argument == "packing":
        return Packing("*i32", "*i32", "*i32", "i32") if "packed" in features else Packing(*[CONSTEXPR] * 4)
    needed = {"left": {"window"}, "right": {"window", "causal"}, "sinks_ptr": {"sinks"}, "dslopes_ptr": {"alibi"}}
    needed["finite_ptr"] = {"causal", "window", "mask", "bias"}
    if argument in needed and not needed[argument] & features:
        return CONSTEXPR
    if argument == "finite_ptr":
        return "*i8"
    if argument.endswith("_ptr"):
        return "*fp32" if argument in _FLOAT32_POINTERS else f"*{_TYPES[setting.dtype]}"
    if argument.endswith("_strides"):
        return ("i32", "i32") if argument == "lse_strides" else ("i32", "i32", "i32", CONSTEXPR)
    return "i32"
