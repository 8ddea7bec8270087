"""Tile sizes of the Hopper attention kernels: a table, each row with its evidence.

Nothing but the kernel, the head dimensions, the dtype and the kind of mask may choose a row: a result must not depend
on what else is in its batch. Head dimensions are rounded up to the row's; what TMA loads past the end of a row is 0.
Rates count the products of the row's head dimensions.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass

_ROWS = 64  # of a consumer
_REGISTERS_OF_AN_SM = 65_536


@dataclass(frozen=True)
class Predicted:
    """Evidence of a row that was not timed: what a model says of its loop over whole tiles, from its machine code.

    The model is fusedformer/benchmarks/static_hopper/model.py. `tflops` is the rate of the matrix products in bfloat16
    (float8 in "fwd_fp8") that it expects, `most_tflops` the one if everything hides behind the unit `bound`.
    """

    tflops: int
    most_tflops: int
    bound: str

    def __str__(self) -> str:
        return f"predicted {self.tflops} to {self.most_tflops} TFLOP/s, bound by {self.bound}"


@dataclass(frozen=True)
class Row:
    """How one kernel is built for head dimensions up to `head_dim` of q and k, and `head_dim_v` of v.

    `block` is the keys of a tile in "fwd", "fwd_fp8" and "dq", the queries in "dkdv" and "fused"; `stages`, the tiles
    in flight in each ring. Registers are a thread's. `recorded`: its correctness on an H200 is on record in results/,
    which is what puts it to use unasked.
    """

    kernel: str
    head_dim: int
    head_dim_v: int
    block: int
    stages: int
    evidence: Predicted
    consumer_registers: int = 240
    producer_registers: int = 24
    ping_pong: bool = True  # in "fwd" and "fwd_fp8": the consumers take turns at issuing products
    consumers: int = 2  # warpgroups of 64 rows each; in "fwd" there may be 3, of whom each has fewer registers
    persistent: bool = False  # in "fwd": a program on each SM computes one tile of queries after another
    unserved: tuple[str, ...] = ()  # for want of registers, or of code for it; "window alibi" is both together
    recorded: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel is."""
        if self.consumers not in (2, 3) or (self.consumers == 3 and (self.kernel != "fwd" or self.persistent)):
            kind = "a persistent fwd" if self.persistent else self.kernel
            raise ValueError(f"{self.consumers} consumers in {kind}, expected 2, or 3 in fwd")
        if self.persistent and (self.kernel, self.head_dim_v > 128) != ("fwd", False):
            raise ValueError(f"persistent {self.kernel}, {self.head_dim_v} columns of v, expected fwd, 128 or fewer")
        if self.persistent and any(self.tails):
            raise ValueError(f"persistent fwd of {self.head_dim}/{self.head_dim_v}, expected powers of 2")

    def serves(self, features: Collection[str]) -> bool:
        """Whether it takes these: of "whole" (nothing is hidden from any query), "causal", "window", and so on."""
        return not any({*words.split()} <= {*features} for words in self.unserved)

    @property
    def built_as(self) -> str:
        """Its name in kernels.py: dK and dV of more columns than a consumer has registers for are shared out."""
        is_wide = self.kernel == "dkdv" and self.head_dim > 128
        return "dkdv_wide" if is_wide else "fwd_persistent" if self.persistent else self.kernel

    @property
    def tiles(self) -> tuple[int, int]:
        """Columns of a tile of q and k, and of one of v: powers of 2, of which products.py leaves out the rest."""
        return _tile_of(self.head_dim), _tile_of(self.head_dim_v)

    @property
    def tails(self) -> tuple[int, int]:
        """Of `tiles`, how many columns are used past the first half, where that is not all of it; else 0."""
        return _tail_of(self.head_dim), _tail_of(self.head_dim_v)

    @property
    def has_unlike_consumers(self) -> bool:
        """Whether its consumers do different work: dK or dV, or of dQ the main part or the tail."""
        return self.built_as == "dkdv_wide" or (self.kernel == "fused" and self.tails[0] > 0)

    @property
    def program_rows(self) -> int:
        """Queries, or in "dkdv" and "fused" keys, of a program."""
        return 64 if self.built_as == "dkdv_wide" else self.consumers * _ROWS

    @property
    def threads(self) -> int:
        """Of a program: the producer's warp is filled up to as many as a consumer has."""
        return 128 * (self.consumers + 1)

    @property
    def registers(self) -> int:
        """Of a thread when a program starts: setmaxnreg moves them between warps later, in multiples of 8.

        All that the program has must be there from the start.
        """
        return _REGISTERS_OF_AN_SM // self.threads // 8 * 8


def _tile_of(head_dim: int) -> int:
    return 1 << (head_dim - 1).bit_length()


def _tail_of(head_dim: int) -> int:
    tile = _tile_of(head_dim)
    return head_dim - tile // 2 if head_dim < tile else 0


UNKNOWN = Predicted(0, 0, "nothing known")  # of a row that was not compiled
SHORTEST = 33  # below it, plain Triton, whose tiles are narrower

TABLE = (
    Row("fwd", 64, 64, 128, 2, Predicted(649, 959, "exp"), unserved=("window alibi",)),
    Row("fwd", 96, 96, 128, 2, Predicted(773, 989, "matrix"), unserved=("window alibi",)),
    Row("fwd", 128, 128, 128, 2, Predicted(842, 989, "matrix")),
    Row("fwd", 192, 128, 64, 2, Predicted(822, 860, "shared")),
    Row("fwd", 256, 128, 64, 2, Predicted(851, 880, "shared")),
    Row("fwd", 256, 256, 64, 2, Predicted(876, 959, "shared")),
    Row("fwd_fp8", 64, 64, 128, 2, Predicted(828, 959, "exp")),
    Row("fwd_fp8", 128, 128, 128, 2, Predicted(1299, 1919, "exp")),
    Row("fwd_fp8", 256, 128, 128, 2, Predicted(1546, 1979, "matrix")),
    Row("dq", 64, 64, 128, 2, Predicted(781, 989, "matrix")),
    Row("dq", 96, 96, 128, 2, Predicted(870, 989, "matrix")),
    Row("dq", 128, 128, 128, 2, Predicted(913, 989, "matrix")),
    Row("dq", 192, 128, 64, 2, Predicted(934, 989, "matrix")),
    Row("dq", 256, 256, 32, 2, Predicted(742, 742, "shared"), unserved=("packed",)),
    Row("dkdv", 64, 64, 128, 2, Predicted(820, 986, "shared")),
    Row("dkdv", 96, 96, 64, 2, Predicted(856, 911, "shared")),
    Row("dkdv", 128, 128, 64, 2, Predicted(905, 988, "shared")),
    Row("dkdv", 192, 128, 64, 2, Predicted(790, 790, "shared"), unserved=("packed",)),
    Row("dkdv", 256, 128, 64, 2, Predicted(846, 846, "shared"), unserved=("packed",)),
    Row("dkdv", 256, 256, 64, 2, Predicted(878, 878, "shared"), unserved=("packed",)),
    Row("fused", 64, 64, 64, 2, Predicted(658, 658, "shared")),
    Row("fused", 96, 96, 64, 2, Predicted(706, 706, "shared")),
    Row("fused", 128, 128, 64, 2, Predicted(791, 791, "shared"), unserved=("whole",)),
)

# By what FUSEDFORMER_HOPPER is when they are asked for: the first that serves comes before the table's rows.
_FEW = ("packed", "grouped")  # what only the table's rows take
ON_REQUEST = {
    "persistent": (
        Row("fwd", 64, 64, 128, 2, Predicted(649, 959, "exp"), persistent=True, unserved=("alibi", *_FEW)),
        Row("fwd", 128, 128, 128, 2, Predicted(842, 989, "matrix"), persistent=True, unserved=("alibi", *_FEW)),
        Row("fwd", 256, 128, 64, 2, Predicted(847, 880, "shared"), persistent=True, unserved=("alibi", *_FEW)),
    ),
    "three": (
        Row(
            "fwd", 64, 64, 128, 2, Predicted(730, 959, "exp"), consumer_registers=160, consumers=3,
            unserved=("causal", "window", "softcap", "alibi", *_FEW),
        ),
        Row(
            "fwd", 64, 64, 64, 2, Predicted(691, 867, "issue"), consumer_registers=160, consumers=3,
            unserved=("whole", "softcap", "alibi", *_FEW),
        ),
    ),
}  # fmt: skip

# By head dimensions, of the forward's rows, causal: what softcap and ALiBi leave of the rate.
SCORED = {
    ("softcap", 64, 64): Predicted(302, 326, "exp"),
    ("softcap", 96, 96): Predicted(421, 490, "exp"),
    ("softcap", 128, 128): Predicted(517, 653, "exp"),
    ("softcap", 192, 128): Predicted(591, 808, "exp"),
    ("softcap", 256, 128): Predicted(653, 880, "shared"),
    ("softcap", 256, 256): Predicted(743, 959, "shared"),
    ("alibi", 64, 64): Predicted(614, 864, "issue"),
    ("alibi", 96, 96): Predicted(719, 989, "matrix"),
    ("alibi", 128, 128): Predicted(802, 989, "matrix"),
    ("alibi", 192, 128): Predicted(785, 860, "shared"),
    ("alibi", 256, 128): Predicted(819, 880, "shared"),
    ("alibi", 256, 256): Predicted(850, 959, "shared"),
}


@functools.cache
def row_of(kernel: str, head_dim: int, head_dim_v: int, features: tuple[str, ...] = ()) -> Row | None:
    """The row that serves, or would if it took the features; None where there is none.

    Where a row with tails does not take them, that of whole tiles does.

    Args:
        kernel: "fwd", "fwd_fp8", "dq", "dkdv", or "fused", which is dkdv with dQ added up by atomics.
        head_dim: of q and k.
        head_dim_v: of v.
        features: as `Row.serves` takes them.
    """
    if min(head_dim, head_dim_v) < SHORTEST:
        return None
    fitting = [
        row for row in TABLE if row.kernel == kernel and head_dim <= row.head_dim and head_dim_v <= row.head_dim_v
    ]  # fmt: skip
    row = min(fitting, key=lambda row: (row.head_dim, row.head_dim_v), default=None)
    if row is None or row.serves(features):
        return row
    return next((other for other in fitting if (other.head_dim, other.head_dim_v) == row.tiles), row)


def row_on_request(request: str, head_dim: int, head_dim_v: int, features: Collection[str]) -> Row | None:
    """The forward's row of ON_REQUEST that serves in place of the table's; None where there is none.

    Args:
        request: what FUSEDFORMER_HOPPER is.
        head_dim: of q and k.
        head_dim_v: of v.
        features: see `Row.serves`.
    """
    shipped = row_of("fwd", head_dim, head_dim_v)
    if shipped is None:
        return None
    sizes = (shipped.head_dim, shipped.head_dim_v)
    rows = (row for row in ON_REQUEST.get(request, ()) if (row.head_dim, row.head_dim_v) == sizes)
    return next((row for row in rows if row.serves(features)), None)


def section_of(sms: int) -> int:
    """Heads in a section of a persistent grid, see work.py.

    Four SMs read the keys of each, which the L2 cache then gives to three. And two rounds of the grid are eight tiles
    of each head of a section: whole sections, for lengths of 1024, 2048, ..., are divided evenly.
    """
    return max(1, sms // 4)


def heads_of_tile(group: int, seqlen_q: int) -> int:
    """How many heads share a tile of queries in the forward: 1, or `group` rounded up to a power of 2.

    They do where a head alone does not fill a program, and fewer programs do for all.
    """
    heads = 1 << (group - 1).bit_length()
    if heads > _ROWS or seqlen_q >= 2 * _ROWS:
        return 1
    programs = -(-seqlen_q * heads // (2 * _ROWS))
    return heads if programs < group else 1
