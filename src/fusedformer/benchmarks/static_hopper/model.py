"""What an SM needs for the steady loop of a Hopper kernel: the rate its busiest unit allows, and the one to expect.

A model, not a measurement; ../static/model.py says what an instruction costs each unit. Two consumers, or three, go
through the loop, in different places of it.

- At most: everything hides behind the busiest unit. An iteration of all takes as long as that needs for all, and what
  TMA writes to shared memory counts as traffic of it.
- Expected: a consumer alternates between its products and the rest, such as a softmax, as a program of plain Triton
  does, and may find another one at the unit that it comes to. The forward does better where a softmax runs under the
  consumer's own product, every kernel does worse where latencies show or power lowers the clock.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fusedformer.benchmarks.static import model
from fusedformer.benchmarks.static.loops import Loop

_QGMMA = re.compile(r"^QGMMA\.(\d+x\d+)x32")
ARCH = 90
WARPS = 4  # of a consumer


@dataclass(frozen=True)
class Bound:
    """Cycles of each unit for an iteration of all consumers, the busiest unit, and rates of the products."""

    cycles: dict[str, float]
    unit: str
    tflops: float
    most_tflops: float


def bound(loops: Sequence[Loop], copied_bytes: int, consumers: int = 2) -> Bound:
    """The model of the loops of two consumers, or three.

    Args:
        loops: the steady one of all, or those of one and the other, who are taken to go through both by turns.
        copied_bytes: what TMA moves to and from shared memory in an iteration of all.
        consumers: how many.
    """
    chip = model.CHIPS[ARCH]
    both, rate = in_16_bits(Loop(tuple(instruction for loop in loops for instruction in loop.body)))
    expected = model.predict(ARCH, both, WARPS, consumers)
    cycles = {unit: consumers // len(loops) * count for unit, count in expected.cycles.items()}
    cycles["shared"] = round(cycles.get("shared", 0.0) + copied_bytes / model.SHARED_RATE, 1)
    unit = max(cycles, key=lambda name: cycles[name])
    flop = 2 * cycles["matrix"] * rate * chip.matrix_rates["HGMMA"]
    most = round(flop / cycles[unit] * chip.sms * chip.clock_ghz / 1000, 1)
    return Bound(cycles, unit, min(rate * expected.tflops, most), most)


def in_16_bits(loop: Loop) -> tuple[Loop, int]:
    """The loop as ../static/model.py knows it, and how many products there are of each that it sees.

    A product of 8 bits (QGMMA) has twice the depth of one of 16, in as many cycles, of as many bytes. A loop has
    either.
    """
    if not any(instruction.mnemonic == "QGMMA" for instruction in loop.body):
        return loop, 1
    body = (replace(instruction, opcode=_QGMMA.sub(r"HGMMA.\1x16", instruction.opcode)) for instruction in loop.body)
    return Loop(tuple(body)), 2
