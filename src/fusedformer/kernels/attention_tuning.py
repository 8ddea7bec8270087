"""Tile sizes of the attention kernels.

Nothing but kernel, GPU, dtype and head dimension may choose a tile: a result must not depend on what else is in its
batch.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys, the warps of a program, and the tiles in flight in its loops."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


INTERPRETER = {"fwd": Tile(64, 32, 1, 1), "rows": Tile(64, 1, 1, 1), "dq": Tile(64, 32, 1, 1), "dkdv": Tile(32, 64, 1, 1)}
SMALL = Tile(64, 32, 4, 1)


def tile(kernel: str, arch: int | None, dtype: torch.dtype, head_dim: int) -> Tile:
    """The tile of `kernel` on a GPU of compute capability `arch` (90 for 9.0), or None for the interpreter."""
    return INTERPRETER[kernel] if arch is None else SMALL
