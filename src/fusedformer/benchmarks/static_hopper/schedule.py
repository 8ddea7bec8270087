"""What a persistent grid is worth: the tiles of queries on the SMs of an H200, by list scheduling. A prediction.

A tile of queries takes as long as the tiles of keys that it visits, at the rate that ./model.py expects of the loop. In
the plain grid an SM that is done takes the next program, which must start: its barriers, and the first loads, that
nothing hides. On a persistent grid an SM computes its own share (kernels/attention/hopper/work.py, here `share`), and
between two tiles only the consumers' last product and the first scores stand alone.

The times of a start, of an end and between tiles are assumed: nothing was measured.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static import model
from fusedformer.benchmarks.static_hopper.model import ARCH
from fusedformer.kernels.attention.hopper import tuning

START_US, END_US, BETWEEN_US = 1.5, 0.5, 0.5  # assumed
QUERIES = 128  # of a tile
_HEADS = 16
_SHAPES = ((16, 1024), (8, 2048), (4, 4096), (2, 8192), (1, 16384), (1, 4096))  # batch and length


@dataclass(frozen=True)
class Launch:
    """Planes (heads of all batches) of tiles of queries; a section of planes is worked on at a time."""

    planes: int
    tiles: int
    section: int


def share(launch: Launch, program: int, programs: int) -> list[tuple[int, int]]:
    """Planes and tiles, counted from the last rows of a plane, of a program of a persistent grid, in their order.

    As `count_of` and `place_of` of kernels/attention/hopper/work.py.
    """
    found = []
    for number in range(-(-launch.planes * launch.tiles // programs)):
        item = number * programs + (programs - 1 - program if number % 2 else program)
        if item < launch.planes * launch.tiles:
            first = item // (launch.section * launch.tiles) * launch.section
            planes = min(launch.section, launch.planes - first)
            rest = item % (launch.section * launch.tiles)
            found.append((first + rest % planes, rest // planes))
    return found


def key_tiles(seqlen: int, block: int, causal: bool) -> list[int]:
    """How many tiles of keys each tile of queries visits, the last rows first; as many queries as keys."""
    ends = range(-(-seqlen // QUERIES) * QUERIES, 0, -QUERIES)
    return [-(-min(end if causal else seqlen, seqlen) // block) for end in ends]


def plain_us(launch: Launch, visited: Sequence[int], step_us: float, sms: int) -> float:
    """Of a grid of a program a tile, which start in order, each on the SM that is free first."""
    free = [0.0] * sms
    for _ in range(launch.planes):
        for count in visited:
            heapq.heapreplace(free, free[0] + START_US + count * step_us + END_US)
    return max(free)


def persistent_us(launch: Launch, visited: Sequence[int], step_us: float, sms: int) -> float:
    """Of a program on each SM."""
    times = []
    for program in range(min(sms, launch.planes * launch.tiles)):
        steps = [visited[tile] * step_us + BETWEEN_US for _, tile in share(launch, program, sms)]
        times.append(START_US + sum(steps) - BETWEEN_US + END_US)
    return max(times)


def speedup(row: tuning.Row, planes: int, seqlen: int, causal: bool) -> float:
    """Predicted: how many times as fast as the plain grid a persistent one of this row is."""
    chip = model.CHIPS[ARCH]
    flop = 2 * QUERIES * row.block * (row.head_dim + row.head_dim_v)
    step_us = flop / (row.evidence.tflops * 1e6 / chip.sms)
    visited = key_tiles(seqlen, row.block, causal)
    launch = Launch(planes, len(visited), tuning.section_of(chip.sms))
    arguments = (launch, visited, step_us, chip.sms)
    return plain_us(*arguments) / persistent_us(*arguments)


def table() -> Table:
    """What the rows with a persistent grid are predicted to gain."""
    lines = [
        (
            f"{row.head_dim}/{row.head_dim_v}",
            f"{batch} x {_HEADS} x {seqlen}",
            *(f"{speedup(row, batch * _HEADS, seqlen, causal):.2f}" for causal in (False, True)),
        )
        for row in tuning.ON_REQUEST["persistent"]
        for batch, seqlen in _SHAPES
    ]
    return Table(
        "The forward on a persistent grid: predicted speedup over the plain grid",
        ("head dims", "batch x heads x length", "full", "causal"),
        lines,
        [
            f"List scheduling on {model.CHIPS[ARCH].sms} SMs, nothing ran. Assumed: {START_US} us to start a program, "
            f"{END_US} to end it, {BETWEEN_US} between two tiles of a persistent one."
        ],
    )
