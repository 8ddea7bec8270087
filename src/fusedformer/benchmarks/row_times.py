"""How long kernels that go over rows take on an H200: a prediction from their machine code, not a measurement.

    seconds = max(bytes / bandwidth, instructions / issue rate) + launch

Bytes are what the op has to move at least (its benchmark states them), instructions what the static world counts in the
loops for sm_90. Its assumptions: what moves and what issues overlaps wholly; a row that is too long for registers is
read again from the L2 cache; the memory gives nine tenths of its bandwidth, as in `fusedformer profile`; a launch, from
the end of the kernel before, takes LAUNCH_SECONDS, which no source gives.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fusedformer.benchmarks.harness.op import BACKWARD, FORWARD, Case, Op
from fusedformer.benchmarks.machines import H200
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.static.budgets import GATED_ARCH
from fusedformer.benchmarks.static.model import CHIPS, ISSUE_RATE, WARP
from fusedformer.benchmarks.static.row import StaticRow

ROWS = 4096
LENGTHS = (256, 1024, 4096, 16384, 65536, 262144)
LAUNCH_SECONDS = 2e-6

_DTYPE, _CUDA_DTYPE = torch.bfloat16, "__nv_bfloat16"
_TYPE = re.compile(r"\b(?:float|__half|__nv_bfloat16)\b")  # among a kernel's arguments, the first is its input's


@dataclass(frozen=True)
class RowTime:
    """The predicted time of one kernel over ROWS rows of one length, in bfloat16.

    Attributes:
        op: the benchmark's name of it.
        kernel: the device function, in its variant of the most instructions.
        length: elements of a row.
        seconds: of one call, its launch included.
        bandwidth_share: bytes over `seconds`, as a share of the data sheet's bandwidth.
        issue_share: the time of the instructions, as a share of the time of the bytes; past 1 it is what binds.
    """

    op: str
    kernel: str
    length: int
    seconds: float
    bandwidth_share: float
    issue_share: float


def predict(rows: Sequence[StaticRow]) -> Iterator[RowTime]:
    """The times of every kernel among these whose instructions were counted, at all LENGTHS."""
    instructions: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.arch == GATED_ARCH and _TYPE.findall(row.variant)[:1] == [_CUDA_DTYPE]:
            counted = row.instructions_per_element or 0.0
            key = row.op, row.kernel
            instructions[key] = max(counted, instructions.get(key, 0.0))
    for (op, kernel), counted in instructions.items():
        if counted:
            yield from (_predict(op, kernel, counted, length) for length in LENGTHS)


def _predict(op: str, kernel: str, instructions: float, length: int) -> RowTime:
    chip = CHIPS[GATED_ARCH]
    direction = BACKWARD if "_bwd_" in kernel else FORWARD
    n_bytes = OPS[op].work(_case(OPS[op], length), direction).n_bytes
    assert n_bytes is not None  # every op of rows states them
    moving = n_bytes / (H200.bandwidth * H200.memory_share)
    issuing = ROWS * length * instructions / (chip.sms * ISSUE_RATE * WARP * chip.clock_ghz * 1e9)
    seconds = max(moving, issuing) + LAUNCH_SECONDS
    return RowTime(op, kernel, length, seconds, n_bytes / H200.bandwidth / seconds, issuing / moving)


def _case(op: Op, length: int) -> Case:
    """ROWS rows of the op, with the names of its own sizes, the last of which is the length."""
    timed = op.time_cases["cuda"][0]
    *outer, last = timed.sizes
    sizes = dict.fromkeys(outer, 1) | ({outer[0]: ROWS, last: length} if outer else {last: ROWS * length})
    return Case(sizes, _DTYPE, timed.options)
