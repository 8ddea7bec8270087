"""The Hopper kernels as they are shipped: what the static world compiles, ahead of time, for sm_90a."""

import itertools
from dataclasses import dataclass
from typing import Any

from fusedformer.kernels.attention.hopper import tuning


@dataclass(frozen=True)
class Tile:
    """A descriptor of tiles of this shape and Triton type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class HopperVariant:
    """One row of the tuning table, compiled for a dtype ("bf16", "fp16") and features.

    `features` are of "causal", "window", "sinks", "softcap", "alibi", "grouped" (8 heads share a tile) and "packed".
    The dtype is that of the result; q, k and v of "fwd_fp8" are float8.
    """

    row: tuning.Row
    dtype: str = "bf16"
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = f"d{self.row.head_dim}"
        if self.row.head_dim_v != self.row.head_dim:
            sizes += f"/{self.row.head_dim_v}"
        kinds = [kind for kind in ("fused", "fp8", "persistent") if self.row.built_as.endswith(kind)]
        kinds += [f"{self.row.consumers} consumers"] * (self.row.consumers != 2)
        return " ".join([self.dtype, sizes, *kinds, *self.features])

    @property
    def _is_bwd(self) -> bool:
        return self.row.kernel in ("dkdv", "fused")

    @property
    def _heads(self) -> int:
        """That share a tile."""
        return 8 if "grouped" in self.features else 1

    @property
    def _is_packed(self) -> bool:
        return "packed" in self.features

    @property
    def kernel(self) -> str:
        """The kernel's function name."""
        name = self.row.built_as
        return f"attention_hopper_{'bwd' if name in ('dkdv', 'fused') else name}_kernel"

    @property
    def copied_bytes(self) -> int:
        """What TMA moves to and from shared memory in an iteration of the steady loop, for all consumers."""
        columns = sum(self.row.tiles)
        numbers = 2 if self._is_bwd else 0
        # The fused kernel's dQ leaves by TMA too.
        sums = self.row.tiles[0] if self.row.kernel == "fused" else 0
        size = 1 if self.row.kernel == "fwd_fp8" else 2
        return self.row.block * (size * columns + 4 * numbers + 4 * sums)

    def arguments(self) -> dict[str, Any]:
        """By name, in no order: a Triton type, a `Tile`, or (by name in capitals, or None) a compile-time value."""
        hides = bool({"causal", "window"} & set(self.features))
        common: dict[str, Any] = {
            "sinks_ptr": "*fp32" if "sinks" in self.features else None,
            **dict.fromkeys(("q_descale_ptr", "k_descale_ptr", "v_descale_ptr"), "*fp32"),
            "lse_ptr": "*fp32",
            "delta_ptr": "*fp32",
            "shift_ptr": "*fp32",
            "finite_ptr": "*i8" if hides and self._heads == 1 else None,
            **dict.fromkeys(("heads", "kv_heads", "group", "seqlen_q", "seqlen_k", "diagonal"), "i32"),
            **dict.fromkeys(("planes", "section"), "i32"),
            "left": "i32" if "window" in self.features else None,
            "right": "i32" if hides else None,
            "span": "i32" if "window" in self.features else None,
            **dict.fromkeys(("starts_q_ptr", "starts_k_ptr", "tiles_ptr"), "*i32" if self._is_packed else None),
            "scale_log2": "fp32",
            "softcap_log2": "fp32" if "softcap" in self.features else None,
            "slopes_ptr": "*fp32" if "alibi" in self.features else None,
            **dict.fromkeys(("slopes_batch", "slopes_head"), "i32" if "alibi" in self.features else None),
            "STAGES": self.row.stages,
            "TAIL": self.row.tails[0],
            "TAIL_V": self.row.tails[1],
            "HEADS": self._heads,
            "CONSUMERS": self.row.consumers,
            "PING_PONG": self.row.ping_pong,
            "CONSUMER_REGISTERS": self.row.consumer_registers,
            "PRODUCER_REGISTERS": self.row.producer_registers,
        }
        return common | self._tiles()

    def _tiles(self) -> dict[str, Any]:
        block, (columns, columns_v) = self.row.block, self.row.tiles
        batch_and_head = (1, 1, 1) if self._is_packed else (1, 1)  # packing.py says why

        def tile(rows: int, columns: int, dtype: str = self.dtype) -> Tile:
            return Tile((*batch_and_head, rows, columns), dtype)

        if self.row.kernel == "fwd_fp8":
            return {
                "q_desc": tile(64, columns, "fp8e4nv"), "k_desc": tile(block, columns, "fp8e4nv"),
                "v_desc": tile(columns_v, block, "fp8e4nv"), "out_desc": tile(64, columns_v),
            }  # fmt: skip
        if self._is_bwd:
            sums = Tile((*batch_and_head, block, columns // 2), "fp32") if self.row.kernel == "fused" else None
            keys, values = tile(64, columns), tile(64, columns_v)
            numbers = Tile((1, 1, block), "fp32")
            return {
                "q_desc": tile(block, columns), "k_desc": tile(self.row.program_rows, columns), "v_desc": values,
                "dout_desc": tile(block, columns_v), "delta_desc": numbers, "shift_desc": numbers, "dq_desc": sums,
                "dk_desc": keys, "dv_desc": values,
            }  # fmt: skip
        rows, rows_v = (self._tile_of_queries(size) for size in (columns, columns_v))
        tiles = {"q_desc": rows, "k_desc": tile(block, columns), "v_desc": tile(block, columns_v)}
        return tiles | {"out_desc": rows_v, "dout_desc": rows_v, "dq_desc": rows}

    def _tile_of_queries(self, columns: int) -> Tile:
        rows = (64,) if self._heads == 1 else (64 // self._heads, self._heads)
        return Tile((1, 1, 1, *rows, columns) if self._is_packed else (1, 1, *rows, columns), self.dtype)


_MASKS: tuple[tuple[str, ...], ...] = ((), ("causal",), ("window",))
_PACKED = tuple((*features, "packed") for features in (*_MASKS[:2], ("window", "sinks")))
# By kernel, what is compiled of each row in bfloat16; sinks are part of the forward in 16 bits alone.
_FEATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "fwd": (
        (), ("causal",), ("causal", "softcap"), ("causal", "alibi"), ("causal", "grouped"),
        ("window", "sinks"), ("window", "sinks", "softcap"), ("window", "sinks", "alibi"),
        ("window", "sinks", "softcap", "grouped"), ("window", "sinks", "alibi", "grouped"), *_PACKED,
    ),
    "fwd_fp8": _MASKS,
    **dict.fromkeys(("dq", "dkdv", "fused"), (*_MASKS, *((*features, "packed") for features in _MASKS))),
}  # fmt: skip


def _kinds(features: tuple[str, ...]) -> set[str]:
    """The features, and "whole" where nothing is hidden."""
    return {*features} | (set() if {"causal", "window"} & {*features} else {"whole"})


def variants() -> list[HopperVariant]:
    """Every row of the tuning table, and on request, in bfloat16 with each mask.

    And the table's of head dimension 128 in float16, but for that of float8, whose result is always bfloat16.
    """
    found = [
        HopperVariant(row, features=features)
        for row in itertools.chain(tuning.TABLE, *tuning.ON_REQUEST.values())
        for features in _FEATURES[row.kernel]
        if row.serves(_kinds(features))
    ]
    halves = [row for row in tuning.TABLE if row.head_dim == 128 and row.kernel != "fwd_fp8"]
    return found + [HopperVariant(row, "fp16", ("causal",)) for row in halves]
