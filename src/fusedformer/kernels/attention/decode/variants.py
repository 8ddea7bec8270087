"""The kernels for a cache of keys as they are shipped: what the static world compiles, ahead of time, for each GPU."""

from dataclasses import dataclass
from typing import Any

import torch

from fusedformer.kernels.attention.decode import launch
from fusedformer.kernels.attention.decode.kernel import (
    PlacePointers,
    Rotary,
    attention_append_kernel,
    attention_combine_kernel,
    attention_decode_kernel,
)
from fusedformer.kernels.attention.decode.launch import APPEND_TILE, COMBINE_TILE
from fusedformer.kernels.attention.launch import constexprs
from fusedformer.kernels.attention.scores import Scoring
from fusedformer.kernels.attention.tuning import EXACT, Tile
from fusedformer.kernels.variants import CONSTEXPR, Variant, specialize

_KERNELS = {
    "append": attention_append_kernel,
    "decode": attention_decode_kernel,
    "combine": attention_combine_kernel,
}
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FLOAT32_POINTERS = ("lse_ptr", "part_ptr", "part_lse_ptr")
_STRIDES = ("i32", "i32", "i32", CONSTEXPR)
_B, _H, _F = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Setting:
    """What a kernel is compiled for.

    `features`: "paged", "leftpad", "causal", "window", "softcap", "alibi", "splits" (float32 out), "rotary", "halves".
    """

    kernel: str
    dtype: torch.dtype
    head_dim: int
    features: tuple[str, ...] = ()
    rows: int = 8
    exact: bool = False

    def __str__(self) -> str:
        rows = [f"{self.rows} rows"] if self.kernel == "decode" else []
        return " ".join([_TYPES[self.dtype], f"d{self.head_dim}", *rows, *self.features, *["exact"] * self.exact])


_ALL = ("paged", "leftpad", "causal", "window", "softcap", "alibi", "splits")

# Every row of the tile table with the fewest queries and with the most, pages and none, each feature.
_SETTINGS = (
    *(Setting("decode", _B, head_dim, ("splits",)) for head_dim in (64, 80, 128, 256, 512)),
    *(Setting("decode", _B, head_dim, ("paged", "splits")) for head_dim in (64, 128, 256)),
    *(Setting("decode", _B, head_dim, _ALL, rows=64) for head_dim in (64, 128, 256, 512)),
    Setting("decode", _B, 128, ("causal",), rows=32),
    *(Setting("decode", _B, head_dim, _ALL, rows=32) for head_dim in (64, 128)),
    Setting("decode", _H, 128, ("paged",)),
    *(Setting("decode", _F, head_dim, ("splits",)) for head_dim in (64, 128, 256)),
    *(Setting("decode", _F, head_dim, _ALL) for head_dim in (64, 128, 256)),
    Setting("decode", _B, 128, ("paged", "causal"), exact=True),
    Setting("decode", _F, 512, ("paged", "splits"), exact=True),
    *(Setting("append", dtype, head_dim) for dtype, head_dim in ((_B, 128), (_F, 512))),
    *(Setting("append", dtype, head_dim, ("paged", "rotary")) for dtype, head_dim in ((_B, 128), (_H, 64), (_F, 512))),
    Setting("append", _B, 128, ("rotary", "halves")),
    *(Setting("combine", dtype, head_dim) for dtype, head_dim in ((_B, 128), (_F, 512))),
)


def variants(arch: int) -> list[Variant]:
    """The kernels and tiles shipped for compute capability `arch` (90 for 9.0); aligned."""
    return [variant(arch, setting) for setting in _SETTINGS]


def variant(arch: int, setting: Setting, tile: Tile | None = None) -> Variant:
    """One kernel for one setting, with the tile of the table or another."""
    kernel = _KERNELS[setting.kernel]
    tile = tile or _tile(arch, setting)
    features = set(setting.features)
    values = {
        "EXACT": setting.exact, "REPAIR": setting.exact and "splits" not in features, "PRECISION": "ieee",
        "HEAD_DIM": setting.head_dim, "HEAD_DIM_V": setting.head_dim,
        "ADVANCE": True,
        "ROTARY_DIM": setting.head_dim if "rotary" in features else 0,
    }  # fmt: skip
    constants = dict[str | tuple[int, ...], Any](constexprs(kernel, values, tile).items())
    signature, attrs = specialize(kernel.arg_names, constants, lambda argument: _kind(argument, setting))
    for argument, index, value in (
        ("scoring", Scoring._fields.index("is_plain"), not {"alibi", "softcap"} & features),
        ("rotary", Rotary._fields.index("interleaved"), "halves" not in features),
        ("places", PlacePointers._fields.index("page_stride"), 1 if "paged" in features else None),
    ):
        if argument in signature:
            constants[kernel.arg_names.index(argument), index] = value
    return Variant(
        op="attention_decode",
        kernel=kernel.__name__,
        module=kernel.fn.__module__,
        name=str(setting),
        signature=signature,
        constexprs=constants,
        attrs=attrs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _tile(arch: int, setting: Setting) -> Tile:
    if setting.kernel != "decode":
        return APPEND_TILE if setting.kernel == "append" else COMBINE_TILE
    if setting.exact:
        return EXACT["fwd"]
    is_paged = "paged" in setting.features
    return launch.decode_tile(arch, setting.dtype, setting.head_dim, setting.rows, is_paged)


def _kind(argument: str, setting: Setting) -> Any:
    """The Triton type of an argument; that of a tuple is a tuple, and what is absent is a constexpr."""
    features = set(setting.features)
    if argument == "scoring":
        fields: dict[str, Any] = dict.fromkeys(Scoring._fields, CONSTEXPR) | {"scale": "fp32", "scale_log2": "fp32"}
        fields |= {"slopes_ptr": "*fp32", "slopes_strides": ("i32", CONSTEXPR)} if "alibi" in features else {}
        return Scoring(**fields | ({"softcap_log2": "fp32"} if "softcap" in features else {}))
    if argument == "places":
        leftpad = "*i32" if "leftpad" in features else CONSTEXPR
        if "paged" in features:
            return PlacePointers("*i32", leftpad, CONSTEXPR, "*i32", "i32", CONSTEXPR)
        return PlacePointers("*i32", leftpad, "*i32", *[CONSTEXPR] * 3)
    if argument == "rotary":
        table = f"*{_TYPES[setting.dtype]}"
        strides = ("i32", CONSTEXPR)
        return (
            Rotary(table, table, strides, strides, "i32", CONSTEXPR)
            if "rotary" in features
            else Rotary(*[CONSTEXPR] * 6)
        )
    needed = {
        "left": {"window"},
        "right": {"window", "causal"},
        "rotated_ptr": {"rotary"},
        "rotated_strides": {"rotary"},
    }
    if argument in needed and not needed[argument] & features:
        return CONSTEXPR
    if argument.endswith("_ptr"):
        is_float32 = argument in _FLOAT32_POINTERS or (argument == "out_ptr" and "splits" in features)
        return "*fp32" if is_float32 else f"*{_TYPES[setting.dtype]}"
    if argument.endswith("_strides"):
        return ("i32", *_STRIDES) if argument == "out_strides" else _STRIDES
    return "i32"
