"""How long a kernel's steady loop takes: cycles that an iteration keeps each unit of an SM busy, and what they allow.

A model, not a measurement. Its assumptions:
- Waits for results are hidden, and those for memory too, if loads are ahead of their iteration: copies to shared memory
  (LDGSTS) are, loads to registers (LDG) are waited for once in each. Power does not lower the clock.
- The warps of one program keep step, for they meet at barriers in every iteration: while its matrix products run, the
  program does nothing else, as Triton's wgmma waits demand. Each of the two phases takes as long as its busiest unit.
- Programs of the same SM are in any phase, and wait for one another where they are in the same one.
- All SMs load from the L2 cache at the same time, while they compute.

Sources, of figures per cycle and SM: CUDA C++ Programming Guide, "Arithmetic Instructions" and "Technical
Specifications per Compute Capability"; NVIDIA A100 and H100 Tensor Core GPU Architecture, whitepapers: 1024 and 2048
multiply-adds of 16 bits, and 5120 bytes of L2 in all (A100; H100 is taken to have the same). Data sheets of A100 and
H200: 312 and 989 TFLOP/s, which give the clocks. Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU
Architecture", 2024: mma reaches 62.9% of the peak; latency of L2. Several programs: Reiser, Lavenberg, "Mean-Value
Analysis of Closed Multichain Queuing Networks", 1980.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from fusedformer.benchmarks.static.control_flow import Instruction
from fusedformer.benchmarks.static.loops import Loop
from fusedformer.benchmarks.static.row import SHARED_LIMIT

# By opcode, what follows from its name: HGMMA.64x128x16 is m x n x k of four warps, HMMA.16816 16 x 8 x 16 of one.
_WARPGROUP_MATRIX = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)")
_WARP_MATRIX = re.compile(r"HMMA\.(16)(8)(8|16)\b")
_A_IN_REGISTERS = re.compile(r"R\d+, R\d+")
_WIDTH = re.compile(r"\.(64|128)\b")
_MATRICES = re.compile(r"\.([24])$")

_FLOAT32 = frozenset({"FADD", "FFMA", "FMUL", "IMAD"})  # the multiply-add of integers has no unit of its own
# fmt: off
_ARITHMETIC = frozenset({
    "F2FP", "FMNMX", "FSEL", "FSETP", "IABS", "IADD", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "MOV", "P2R", "PLOP3",
    "PRMT", "R2P", "SEL", "SHF", "VIADD", "VIMNMX",
})
# fmt: on
_GLOBAL = frozenset({"LDG", "LDGSTS"})
_SHARED = frozenset({*_GLOBAL, "LDS", "SHFL", "STS"})
_SHARED_MATRICES = frozenset({"LDSM", "STSM"})
# Of the two phases of an iteration.
_OF_PRODUCTS = ("matrix", "shared")
_OF_THE_REST = ("exp", "float32", "arithmetic", "issue")

WARP = 32
EXP_RATE = 16
ARITHMETIC_RATE = 64
SHARED_RATE = 128  # bytes
ISSUE_RATE = 4  # warps
L2_RATE = 5120  # bytes, of the whole chip
LOAD_LATENCY = 260  # cycles, of a hit in the L2 cache
REGISTERS = 65_536  # of an SM
REGISTER_UNIT = 8  # of a thread
SHARED_RESERVED = 1024  # bytes of shared memory of each block, and an SM has as much beside the largest block


@dataclass(frozen=True)
class Chip:
    """What differs from one SM to another; rates are per cycle and SM."""

    sms: int
    clock_ghz: float
    matrix_rates: dict[str, int]  # multiply-adds with operands of 16 bits, by mnemonic
    float32_rate: int


CHIPS = {
    80: Chip(sms=108, clock_ghz=1.41, matrix_rates={"HMMA": 1024}, float32_rate=64),  # A100
    90: Chip(sms=132, clock_ghz=1.83, matrix_rates={"HGMMA": 2048, "HMMA": 1288}, float32_rate=128),  # H200, SXM
}


@dataclass(frozen=True)
class Prediction:
    """What the model says of a loop.

    Attributes:
        cycles: of each unit, for an iteration of one program: "matrix", "shared" (and the first-level cache), "exp",
            "float32", "arithmetic" (integers, comparisons, conversions), "issue" and "l2"; and "load", a wait.
        bound: the units that a program waits for in turn, the slowest first, such as "matrix + issue".
        tflops: rate of the matrix products, those of padding included, when every SM is busy.
    """

    cycles: dict[str, float]
    bound: str
    tflops: float


def programs_per_sm(arch: int, warps: int, registers: int, shared_bytes: int) -> int:
    """How many programs of `warps` warps an SM holds at a time."""
    rounded = -(-registers // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // (rounded * warps * WARP)
    by_shared = (SHARED_LIMIT[arch] + SHARED_RESERVED) // (shared_bytes + SHARED_RESERVED)
    return min(by_registers, by_shared, 64 // warps)


def predict(arch: int, loop: Loop, warps: int, programs: int) -> Prediction:
    """The model of a loop with matrix instructions.

    Args:
        arch: one of CHIPS.
        loop: the steady one.
        warps: of a program.
        programs: that an SM holds at a time.
    """
    chip = CHIPS[arch]
    cycles = _cycles(loop, chip, warps)
    phases, wait = _phases(cycles)
    total = _cycles_per_iteration(phases, wait, programs)
    bound = " + ".join(sorted(phases, key=lambda unit: -phases[unit]))
    if cycles["l2"] > total:
        total, bound = cycles["l2"], "l2"
    flop = 2 * warps * sum(_products(instruction) for instruction in loop.body)
    return Prediction(
        cycles={unit: round(count, 1) for unit, count in sorted(cycles.items())},
        bound=bound,
        tflops=round(flop / total * chip.sms * chip.clock_ghz / 1000, 1),
    )


def _cycles(loop: Loop, chip: Chip, warps: int) -> dict[str, float]:
    """Cycles that each unit needs for an iteration."""
    cycles = defaultdict[str, float](float)
    for instruction in loop.body:
        cycles["issue"] += warps / ISSUE_RATE
        if instruction.guard == "!PT":
            continue
        cycles["shared"] += _shared_bytes(instruction) * warps / SHARED_RATE
        cycles["l2"] += _global_bytes(instruction) * warps / (L2_RATE / chip.sms)
        if products := _products(instruction):
            cycles["matrix"] += products * warps / chip.matrix_rates[instruction.mnemonic]
        elif instruction.mnemonic == "MUFU":
            cycles["exp"] += WARP * warps / EXP_RATE
        elif instruction.mnemonic in _FLOAT32:
            cycles["float32"] += WARP * warps / chip.float32_rate
        elif instruction.mnemonic in _ARITHMETIC:
            cycles["arithmetic"] += WARP * warps / ARITHMETIC_RATE
        elif instruction.mnemonic == "LDG":
            cycles["load"] = LOAD_LATENCY
    return cycles


def _phases(cycles: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """The unit that each phase of an iteration takes longest on, and for how long; and the cycles of waiting."""
    products, rest = (max(units, key=lambda unit: cycles.get(unit, 0.0)) for units in (_OF_PRODUCTS, _OF_THE_REST))
    return {products: cycles[products], rest: cycles[rest]}, cycles.get("load", 0.0)


def _cycles_per_iteration(phases: Mapping[str, float], wait: float, programs: int) -> float:
    """Cycles of an SM for each iteration of any of its programs: mean value analysis of a closed network.

    A program that comes to a unit finds there, on average, as many others as if it were not one of the programs.
    """
    waiting = dict.fromkeys(phases, 0.0)
    cycles = 0.0
    for present in range(1, programs + 1):
        times = {unit: phases[unit] * (1 + waiting[unit]) for unit in phases}
        cycles = (sum(times.values()) + wait) / present
        waiting = {unit: times[unit] / cycles for unit in phases}
    return cycles


def _products(instruction: Instruction) -> float:
    """Multiply-adds of each warp, if this is a matrix instruction."""
    if found := _WARPGROUP_MATRIX.match(instruction.opcode):
        return int(found[1]) * int(found[2]) * int(found[3]) / 4
    if found := _WARP_MATRIX.match(instruction.opcode):
        return int(found[1]) * int(found[2]) * int(found[3])
    if instruction.mnemonic.endswith("MMA"):
        raise ValueError(f"{instruction.opcode}: not known how many products these are")
    return 0


def _shared_bytes(instruction: Instruction) -> float:
    """Bytes that it moves to or from shared memory, of each warp."""
    if found := _WARPGROUP_MATRIX.match(instruction.opcode):
        rows = 0 if _A_IN_REGISTERS.match(instruction.operands) else int(found[1])
        return (rows + int(found[2])) * int(found[3]) * 2 / 4
    if instruction.mnemonic in _SHARED_MATRICES:
        matrices = _MATRICES.search(instruction.opcode)
        return 8 * 8 * 2 * (int(matrices[1]) if matrices else 1)
    return _bytes(instruction) if instruction.mnemonic in _SHARED else 0


def _global_bytes(instruction: Instruction) -> float:
    """Bytes that it loads through the L2 cache, for each warp; narrow loads are few, of what many threads share."""
    return _bytes(instruction) if instruction.mnemonic in _GLOBAL and _WIDTH.search(instruction.opcode) else 0


def _bytes(instruction: Instruction) -> float:
    width = _WIDTH.search(instruction.opcode)
    return WARP * (int(width[1]) if width else 32) / 8
