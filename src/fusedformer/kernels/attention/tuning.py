"""Tile sizes of the attention kernels: a table, each row with its evidence.

Nothing but the kernel, the GPU, the dtype, the head dimension and what is done to scores may choose a tile: a result
must not depend on what else is in its batch.
"""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """BLOCK_M queries by BLOCK_N keys (not used by "rows"), warps of a program, tiles in flight in its loops."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Predicted:
    """Evidence of a tile that was not timed: what a model says of its loop over whole tiles, from its machine code.

    The model is fusedformer/benchmarks/static/model.py. `tflops` is the rate of the matrix products in bfloat16 at the
    largest head dimension of the row, compiled by `PREDICTED_WITH`, and `bound` names the units of the chip that a
    program waits for.
    """

    tflops: int
    bound: str

    def __str__(self) -> str:
        return f"predicted {self.tflops} TFLOP/s, bound by {self.bound}"


@dataclass(frozen=True)
class Row:
    """The tile of one kernel for head dimensions up to `head_dim`; `busy` where scores are more than scaled products.

    `archs` are compute capabilities. `evidence` is "static": it compiles for each of them without spills and within the
    shared memory of the chip, the busy one with all features at once, and was not timed; or moreover what is predicted
    of `tile`; or a measurement.
    """

    kernel: str
    archs: tuple[int, ...]
    element_size: int
    head_dim: int
    tile: Tile
    busy: Tile
    evidence: str | Predicted
    packed: Tile | None = None  # of packed sequences where `tile` spills for them


ALL = (80, 90, 100, 120)
STATIC = "static"
PREDICTED_WITH = "Triton 3.7.1"

TABLE = (
    Row("fwd", (80,), 2, 64, Tile(128, 128, 8, 2), Tile(64, 64, 8, 1), Predicted(172, "shared + issue")),
    Row("fwd", (80,), 2, 128, Tile(128, 32, 8, 2), Tile(64, 32, 8, 1), Predicted(153, "shared + issue")),
    Row("fwd", (80,), 2, 256, Tile(64, 32, 8, 2), Tile(64, 32, 8, 1), Predicted(102, "shared + issue")),
    Row("fwd", (90,), 2, 64, Tile(128, 64, 4, 2), Tile(64, 64, 8, 1), Predicted(603, "shared + exp")),
    Row("fwd", (90,), 2, 127, Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row(
        "fwd",
        (90,),
        2,
        128,
        Tile(128, 128, 8, 2),
        Tile(64, 32, 8, 1),
        Predicted(653, "matrix + exp"),
        Tile(128, 64, 8, 2),
    ),
    Row("fwd", (90,), 2, 255, Tile(128, 32, 8, 2), Tile(32, 32, 8, 1), STATIC),
    Row("fwd", (90,), 2, 256, Tile(128, 64, 8, 2), Tile(32, 32, 8, 1), Predicted(668, "shared + issue")),
    Row("fwd", (100,), 2, 64, Tile(128, 64, 8, 2), Tile(64, 64, 8, 1), STATIC),
    Row("fwd", (100,), 2, 128, Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("fwd", (100,), 2, 255, Tile(128, 32, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("fwd", (100,), 2, 256, Tile(128, 32, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("fwd", (120,), 2, 64, Tile(128, 128, 8, 2), Tile(64, 64, 8, 1), STATIC),
    Row("fwd", (120,), 2, 127, Tile(128, 64, 8, 1), Tile(64, 32, 8, 1), STATIC),
    Row("fwd", (120,), 2, 128, Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("fwd", (120,), 2, 256, Tile(64, 32, 8, 2), Tile(32, 32, 8, 1), STATIC),
    Row("fwd", ALL, 2, 512, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dq", (80,), 2, 32, Tile(128, 64, 8, 1), Tile(64, 32, 8, 1), Predicted(186, "shared + exp")),
    Row("dq", (80, 120), 2, 64, Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("dq", (80,), 2, 128, Tile(128, 32, 8, 2), Tile(32, 32, 8, 1), Predicted(177, "shared + issue")),
    Row("dq", (120,), 2, 128, Tile(128, 32, 8, 2), Tile(32, 32, 4, 1), STATIC),
    Row("dq", (80, 120), 2, 256, Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dq", (90,), 2, 63, Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("dq", (90,), 2, 64, Tile(128, 64, 4, 2), Tile(64, 32, 8, 1), Predicted(781, "matrix + exp")),
    Row("dq", (90,), 2, 127, Tile(128, 64, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("dq", (90,), 2, 128, Tile(128, 128, 8, 2), Tile(64, 32, 8, 1), Predicted(742, "matrix + exp")),
    Row("dq", (90,), 2, 256, Tile(128, 32, 8, 2), Tile(32, 32, 8, 1), Predicted(586, "shared + issue")),
    Row("dq", (100,), 2, 64, Tile(128, 64, 8, 2), Tile(64, 64, 8, 1), STATIC),
    Row("dq", (100,), 2, 128, Tile(128, 32, 8, 2), Tile(64, 32, 8, 1), STATIC),
    Row("dq", (100,), 2, 256, Tile(128, 32, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dq", (80, 90, 100), 2, 512, Tile(32, 32, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("dq", (120,), 2, 512, Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("dkdv", (80, 120), 2, 64, Tile(64, 128, 8, 2), Tile(32, 32, 8, 1), STATIC),
    Row("dkdv", (80,), 2, 128, Tile(32, 64, 8, 2), Tile(32, 32, 4, 1), Predicted(118, "shared + issue")),
    Row("dkdv", (120,), 2, 128, Tile(32, 64, 8, 2), Tile(32, 32, 8, 1), STATIC),
    Row("dkdv", (90,), 2, 64, Tile(64, 64, 4, 2), Tile(32, 64, 8, 1), Predicted(644, "shared + issue")),
    Row("dkdv", (90,), 2, 127, Tile(32, 128, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dkdv", (90,), 2, 128, Tile(32, 64, 4, 2), Tile(32, 32, 8, 1), Predicted(621, "shared + issue")),
    Row("dkdv", (90,), 2, 256, Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Predicted(193, "shared + issue")),
    Row("dkdv", (100,), 2, 64, Tile(64, 128, 8, 2), Tile(32, 64, 8, 1), STATIC),
    Row("dkdv", (100,), 2, 128, Tile(32, 128, 8, 2), Tile(32, 32, 8, 1), STATIC),
    Row("dkdv", (80, 100, 120), 2, 256, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dkdv", ALL, 2, 512, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dbias", ALL, 2, 64, Tile(64, 32, 8, 1), Tile(64, 32, 8, 1), STATIC),
    Row("dbias", ALL, 2, 128, Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("dbias", ALL, 2, 256, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("fwd", ALL, 4, 64, Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("fwd", ALL, 4, 128, Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("fwd", (80, 90, 120), 4, 256, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("fwd", (100,), 4, 256, Tile(32, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dq", (80,), 4, 64, Tile(16, 32, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dq", (90, 100, 120), 4, 64, Tile(32, 32, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dq", (80, 100, 120), 4, 128, Tile(16, 16, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("dq", (90,), 4, 128, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dq", ALL, 4, 256, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dkdv", (80, 90, 120), 4, 64, Tile(32, 64, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dkdv", (100,), 4, 64, Tile(32, 64, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("dkdv", ALL, 4, 128, Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), STATIC),
    Row("dkdv", ALL, 4, 256, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("dbias", ALL, 4, 64, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1), STATIC),
    Row("dbias", ALL, 4, 128, Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), STATIC),
    Row("dbias", ALL, 4, 256, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), STATIC),
    Row("rows", ALL, 2, 512, Tile(32, 16, 4, 1), Tile(32, 16, 4, 1), STATIC),
    Row("rows", ALL, 4, 512, Tile(32, 16, 4, 1), Tile(32, 16, 4, 1), STATIC),
)

# The second launch, for the rare tile that is not finite: elementwise sums, so few keys (queries in dkdv) at a time.
EXACT = {
    "fwd": Tile(8, 2, 8, 1), "dq": Tile(4, 2, 8, 1), "dkdv": Tile(2, 4, 8, 1), "dbias": Tile(4, 4, 8, 1)
}  # fmt: skip
# Products of longer rows than these spill whatever the tile: elementwise sums serve instead.
LONGEST_FLOAT32 = 256
LONGEST_DBIAS = 256

# The row to use for a GPU that has none of its own: those of a smaller chip of the same kind.
FAMILIES = {87: 80, 103: 100}
SMALLEST = 120  # 99 KiB of shared memory, as compute capabilities 8.6 and 8.9 have

# Small, so that short tensors are several tiles, and oblong, so that an exchange of rows and keys shows.
INTERPRETED = {
    "fwd": Tile(64, 32, 1, 1),
    "rows": Tile(64, 16, 1, 1),
    "dq": Tile(64, 32, 1, 1),
    "dkdv": Tile(32, 64, 1, 1),
    "dbias": Tile(64, 32, 1, 1),
}
# Half of what they repair, so that a repair is one in parts.
INTERPRETED_EXACT = INTERPRETED | {
    "fwd": Tile(32, 32, 1, 1), "dq": Tile(32, 32, 1, 1), "dkdv": Tile(32, 32, 1, 1)
}  # fmt: skip


@functools.cache
def tile(
    kernel: str, arch: int | None, dtype: torch.dtype, head_dim: int, busy: bool,
    exact: bool = False, packed: bool = False,
) -> Tile:  # fmt: skip
    """The tile of a kernel.

    Args:
        kernel: "fwd", "rows", "dq", "dkdv" or "dbias".
        arch: compute capability, 90 for 9.0; None for the interpreter.
        dtype: of q.
        head_dim: the larger one of q and v, 1 to 512, in float32 to `LONGEST_FLOAT32`.
        busy: whether there is a mask or dropout, scores are more than scaled products, or strides are not aligned.
        exact: whether sums are taken without matrix products: one tile serves everywhere.
        packed: whether sequences are packed.
    """
    if arch is None:
        return (INTERPRETED_EXACT if exact else INTERPRETED)[kernel]
    if exact:
        return EXACT[kernel]
    row = row_of(kernel, arch, dtype, head_dim)
    return row.busy if busy else row.packed if packed and row.packed else row.tile


def row_of(kernel: str, arch: int, dtype: torch.dtype, head_dim: int) -> Row:
    """The row that serves; for the arguments see `tile`."""
    fitting = [
        row
        for row in TABLE
        if (row.kernel, row.element_size) == (kernel, dtype.itemsize)
        and tuned_arch(arch) in row.archs
        and head_dim <= row.head_dim
    ]
    return min(fitting, key=lambda row: row.head_dim)


def tuned_arch(arch: int) -> int:
    """The compute capability whose rows serve one that may have none of its own."""
    return arch if arch in ALL else FAMILIES.get(arch, SMALLEST)


def is_elementwise(kernel: str, arch: int | None, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a kernel takes elementwise sums instead of matrix products throughout."""
    if arch is None or kernel == "rows":
        return False
    longest = LONGEST_DBIAS if kernel == "dbias" else LONGEST_FLOAT32 if dtype.itemsize == 4 else head_dim
    return head_dim > longest
