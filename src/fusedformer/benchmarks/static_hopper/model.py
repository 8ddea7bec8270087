"""What an SM needs for the steady loop of a Hopper kernel: the rate its busiest unit allows, and the one to expect.

A model, not a measurement; ../static/model.py says what an instruction costs each unit. Two consumers go through the
loop, in different places of it.

- At most: everything hides behind the busiest unit. An iteration of both takes as long as that needs for both, and what
  TMA writes to shared memory counts as traffic of it.
- Expected: a consumer alternates between its products and the rest, such as a softmax, as a program of plain Triton
  does, and may find the other one at the unit that it comes to. The forward does better where a softmax runs under the
  consumer's own product, every kernel does worse where latencies show or power lowers the clock.
"""

from dataclasses import dataclass

from fusedformer.benchmarks.static import model
from fusedformer.benchmarks.static.loops import Loop

ARCH = 90
CONSUMERS, WARPS = 2, 4


@dataclass(frozen=True)
class Bound:
    """Cycles of each unit for an iteration of both consumers, the busiest unit, and rates of the products."""

    cycles: dict[str, float]
    unit: str
    tflops: float
    most_tflops: float


def bound(loop: Loop, copied_bytes: int) -> Bound:
    """The model of a loop of each of two consumers.

    Args:
        loop: the steady one.
        copied_bytes: what TMA moves to and from shared memory in an iteration of both.
    """
    chip = model.CHIPS[ARCH]
    expected = model.predict(ARCH, loop, WARPS, CONSUMERS)
    cycles = {unit: CONSUMERS * count for unit, count in expected.cycles.items()}
    cycles["shared"] = round(cycles.get("shared", 0.0) + copied_bytes / model.SHARED_RATE, 1)
    unit = max(cycles, key=lambda name: cycles[name])
    flop = 2 * cycles["matrix"] * chip.matrix_rates["HGMMA"]
    most = round(flop / cycles[unit] * chip.sms * chip.clock_ghz / 1000, 1)
    return Bound(cycles, unit, min(expected.tflops, most), most)
