"""Tile sizes of the attention kernels: a table, each row with its evidence.

Nothing but the kernel, the GPU, the dtype, the head dimension and whether there is a mask may choose a tile: a result
must not depend on what else is in its batch.
"""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys, the warps of a program, and the tiles in flight in its loops."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Row:
    """The tile of one kernel for head dimensions up to `head_dim`, and for the same with a mask.

    `archs` are compute capabilities, `evidence` is a measurement, or "static": it compiles for each of them without
    spills and within the shared memory of the chip, and was not timed.
    """

    kernel: str
    archs: tuple[int, ...]
    element_size: int
    head_dim: int
    tile: Tile
    masked: Tile
    evidence: str


TABLE: tuple[Row, ...] = ()

# The row to use for a GPU that has none of its own: those of a smaller chip of the same kind.
FAMILIES = {87: 80, 103: 100}
SMALLEST = 120  # 99 KiB of shared memory, as compute capabilities 8.6 and 8.9 have

# Small, so that short tensors are several tiles, and oblong, so that an exchange of rows and keys shows.
INTERPRETED = {
    "fwd": Tile(64, 32, 1, 1),
    "rows": Tile(64, 1, 1, 1),
    "dq": Tile(64, 32, 1, 1),
    "dkdv": Tile(32, 64, 1, 1),
}


@functools.cache
def tile(kernel: str, arch: int | None, dtype: torch.dtype, head_dim: int, masked: bool) -> Tile:
    """The tile of a kernel.

    Args:
        kernel: "fwd", "rows", "dq" or "dkdv".
        arch: compute capability, 90 for 9.0; None for the interpreter.
        dtype: of q.
        head_dim: 1 to 256.
        masked: whether there is a mask.
    """
    if arch is None:
        return INTERPRETED[kernel]
    known = {arch for row in TABLE for arch in row.archs}
    arch = arch if arch in known else FAMILIES.get(arch, SMALLEST)
    row = next(
        row
        for row in TABLE
        if (row.kernel, row.element_size) == (kernel, dtype.itemsize) and arch in row.archs and head_dim <= row.head_dim
    )
    return row.masked if masked else row.tile
