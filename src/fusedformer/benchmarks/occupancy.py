"""Occupancy: how many blocks of a kernel an SM holds at a time, and the share of its warps that these are.

    blocks(90, threads=256, registers=72, shared_bytes=0)      3: registers leave room for 28 warps, and 3 x 8 are 24

An SM hands out registers to warps, 256 at a time, from four parts of its own; shared memory to blocks, 128 bytes at a
time, with SHARED_RESERVED more for each. Neither needs a GPU, and NVIDIA's cuda_occupancy.h comes to the same
(tests/test_occupancy.py); static/model.py, which rounds less, may come to more.
Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fusedformer.benchmarks.static.collect import TRITON_OPS
from fusedformer.benchmarks.static.model import REGISTER_UNIT, REGISTERS, SHARED_RESERVED, WARP
from fusedformer.benchmarks.static.row import SHARED_LIMIT, StaticRow
from fusedformer.benchmarks.static_hopper.model import WARPS
from fusedformer.benchmarks.static_hopper.row import HopperRow

PARTS = 4  # of an SM: each has a quarter of its registers, and every fourth warp of a block
MAX_THREADS, MAX_REGISTERS = 1024, 256  # of a block, and of a thread as they are handed out
SHARED_UNIT = 128  # bytes

_ROW_SHAPE = re.compile(r"RowShape<(\w+), (\d+)>")
_SUMMING = ("cross_entropy_sum_kernel", "cross_entropy_total_kernel")  # with kSumThreads


@dataclass(frozen=True)
class Limits:
    """What an SM holds at most."""

    warps: int
    blocks: int


LIMITS = {80: Limits(64, 32), 90: Limits(64, 32), 100: Limits(64, 32), 120: Limits(48, 24)}


@dataclass(frozen=True)
class Occupancy:
    """Of one kernel variant: threads of a block, blocks that an SM holds, and their share of the SM's warps."""

    threads: int
    blocks: int
    share: float

    def __str__(self) -> str:
        return f"{self.blocks} x {self.threads}, {self.share:.0%}"


def blocks(arch: int, threads: int, registers: int, shared_bytes: int) -> int:
    """How many blocks an SM holds at a time; 0 if a block is too large for it.

    Args:
        arch: one of LIMITS; 90 is sm_90.
        threads: of a block.
        registers: of a thread.
        shared_bytes: of a block, whether declared or added by a launch.

    Raises:
        ValueError: an unknown architecture, a block without threads, or a negative number.
    """
    if arch not in LIMITS:
        raise ValueError(f"arch is {arch}, known are {list(LIMITS)}")
    if threads < 1 or registers < 0 or shared_bytes < 0:
        raise ValueError(
            f"threads is {threads}, registers {registers}, shared_bytes {shared_bytes}: expected 1, 0 and 0 at least"
        )
    warps = -(-threads // WARP)
    if threads > MAX_THREADS or shared_bytes > SHARED_LIMIT[arch]:
        return 0
    by_shared = (SHARED_LIMIT[arch] + SHARED_RESERVED) // _rounded(shared_bytes + SHARED_RESERVED, SHARED_UNIT)
    by_warps = LIMITS[arch].warps // warps
    return min(_blocks_by_registers(warps, registers), by_shared, by_warps, LIMITS[arch].blocks)


def _blocks_by_registers(warps: int, registers: int) -> int:
    of_warp = max(1, _rounded(registers, REGISTER_UNIT)) * WARP
    # One block is taken to need as many in each part, however its warps fall.
    if registers > MAX_REGISTERS or of_warp * _rounded(warps, PARTS) > REGISTERS:
        return 0
    return REGISTERS // PARTS // of_warp * PARTS // warps


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def threads_of(row: StaticRow) -> int | None:
    """Threads of a block of a shipped kernel; None if the variant is not one that is shipped.

    Of a .cu kernel the most that it is compiled for (its __launch_bounds__): short rows are launched with fewer.
    """
    if isinstance(row, HopperRow):
        # With the producer's warp, which Triton fills up to as many as a consumer has.
        return (row.consumers + 1) * WARPS * WARP
    if row.op.startswith("attention"):
        warps = _triton_warps(row.arch).get((row.kernel, row.variant))
        return None if warps is None else warps * WARP
    if shape := _ROW_SHAPE.search(row.variant):
        team, held = shape.groups()
        return (256 if held == "4" else 512) if team == "Blocks" else 128
    return 512 if row.kernel in _SUMMING else 256


@functools.cache
def _triton_warps(arch: int) -> dict[tuple[str, str], int]:
    """Warps of a program, by kernel and variant."""
    if find_spec("triton") is None:
        return {}
    shipped = (variant for module in TRITON_OPS.values() for variant in import_module(module).variants(arch))
    return {(variant.kernel, variant.name): variant.num_warps for variant in shipped}


def of(row: StaticRow) -> Occupancy | None:
    """The occupancy of a variant; None if it was not compiled, or if nothing says how many threads it has.

    Shared memory is the row's: what the launch of a .cu kernel adds, such as sums of columns, can leave room for less.
    """
    threads = threads_of(row) if row.compiled else None
    if threads is None:
        return None
    resident = blocks(row.arch, threads, row.registers, row.shared_bytes)
    return Occupancy(threads, resident, resident * -(-threads // WARP) / LIMITS[row.arch].warps)


def described(rows: Sequence[StaticRow]) -> list[dict[str, Any]]:
    """The rows for a JSON file: their fields, and "occupancy" with its own, or null."""
    found = ((row, of(row)) for row in rows)
    return [row.to_dict() | {"occupancy": occupancy and vars(occupancy)} for row, occupancy in found]
