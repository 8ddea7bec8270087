"""One row of the static world: what one kernel variant needs on one architecture, and what is wrong with that."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fusedformer.benchmarks.static import budgets
from fusedformer.benchmarks.static.sass import InstructionMix
from fusedformer.build import KernelResources

# Shared memory that one block may have, in bytes, by architecture.
# Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}

# Advice on performance is printed among the information, with a number.
_WARNING = re.compile(r"^ptxas\S*\s+(?:warning\s*:|info\s*:(?=\s*\(C\d+\)))\s*(.*)$", re.MULTILINE)
# wgmma instructions that wait for one another; the number tells the cause, C7511 is one. C7519 is none of them: there
# the compiler only adds an arrive instruction, so that a wgmma may read registers.
_SERIALIZED = re.compile(r"\(C75(?!19)\d\d\)|wgmma.* serialized")


@dataclass(frozen=True, kw_only=True)
class StaticRow:
    """One kernel variant compiled for one architecture, or the reason why there is none.

    Counts are of instructions as they stand in the code; see `sass.InstructionMix` for their meaning.
    """

    op: str
    kernel: str = ""
    variant: str = ""
    arch: int  # 90 is sm_90
    registers: int = 0  # of a thread
    spill_bytes: int = 0  # of a thread: stores and loads together
    stack_bytes: int = 0  # of a thread
    shared_bytes: int = 0  # of a block; of a .cu kernel only what is declared in the code, not what a launch adds
    matrix: dict[str, int] = field(default_factory=dict)
    global_loads: int = 0
    global_loads_128: int = 0
    global_stores: int = 0
    global_stores_128: int = 0
    local_accesses: int = 0
    narrow_offsets: int | None = None  # address computations with 32-bit offsets; not known of .cu kernels
    instructions_per_element: float | None = None  # stored, of the loop that stores; known of .cu kernels alone
    vectorized: bool = False  # whether 128-bit loads and stores are required
    reduces: bool = False  # whether it stores a few numbers for each row, so loads alone are
    steady_masks: int | None = None  # of the steady loop, see `loops.Loop`; None if the variant promises none
    steady_cycles: dict[str, float] = field(default_factory=dict)  # of the steady loop, by unit: `model.Prediction`
    programs: int = 0  # that an SM holds at a time
    predicted_tflops: float = 0.0  # by `model.predict`; 0 if there is no model of the loop or of the GPU
    bound: str = ""  # the units that this rate is due to
    warnings: tuple[str, ...] = ()  # what ptxas warned of
    error: str = ""  # why it did not compile
    skipped: str = ""  # why it was not tried

    @property
    def compiled(self) -> bool:
        """Whether there are figures."""
        return not self.error and not self.skipped

    @property
    def problems(self) -> tuple[str, ...]:
        """Every gate that the variant fails, in words and with its figure; none if it was skipped."""
        if self.error:
            return (self.error,)
        if self.skipped:
            return ()
        limit = SHARED_LIMIT[self.arch]
        cost, budget = self.instructions_per_element, budgets.instructions(self.kernel, self.variant, self.arch)
        found = {
            f"{self.spill_bytes} bytes spilled": self.spill_bytes > 0,
            f"{self.stack_bytes} bytes of stack": self.stack_bytes > 0,
            f"{self.local_accesses} accesses of local memory": self.local_accesses > 0,
            f"{self.shared_bytes} bytes of shared memory, sm_{self.arch} has {limit}": self.shared_bytes > limit,
            f"{self.narrow_offsets} pointer offsets of 32 bits, which overflow past 2^31": bool(self.narrow_offsets),
            "no 128-bit global load": self.vectorized and not self.global_loads_128,
            "no 128-bit global store": self.vectorized and not self.reduces and not self.global_stores_128,
            f"{cost} instructions an element, its budget is {budget}": budget is not None
            and (cost or math.inf) > budget,
            f"{self.steady_masks} mask instructions in the steady loop": bool(self.steady_masks),
        }
        serialized = tuple(warning for warning in self.warnings if _SERIALIZED.search(warning))
        return tuple(problem for problem, is_found in found.items() if is_found) + serialized

    @property
    def passed(self) -> bool:
        """Whether the variant compiled and passes every gate."""
        return not self.skipped and not self.problems

    @property
    def verdict(self) -> str:
        """`ok`, `skipped: ` and the reason, or `FAILED: ` and every problem."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "FAILED: " + "; ".join(self.problems) if self.problems else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, and `problems` and `passed`: what JSON and CSV hold."""
        return dataclasses.asdict(self) | {"problems": self.problems, "passed": self.passed}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "StaticRow":
        """The row that `to_dict` described, also after a trip through JSON."""
        known = {name: value for name, value in fields.items() if name not in ("problems", "passed")}
        return cls(**known | {"warnings": tuple(known["warnings"])})


def not_compiled(rows: Sequence[StaticRow]) -> str:
    """How many were skipped, in words; empty if none was."""
    skipped = sum(bool(row.skipped) for row in rows)
    return f"{skipped} of {len(rows)} not compiled" if skipped else ""


def measured(resources: KernelResources, mix: InstructionMix) -> dict[str, Any]:
    """The fields of a row that ptxas and the disassembly give."""
    return dataclasses.asdict(mix) | {
        "registers": resources.registers,
        "spill_bytes": resources.spill_store_bytes + resources.spill_load_bytes,
        "stack_bytes": resources.stack_bytes,
        "shared_bytes": resources.shared_bytes,
    }


def parse_warnings(report: str) -> tuple[str, ...]:
    """The warnings in what `ptxas -v` printed, each once, such as "(C7511) Potential Performance Loss: ..."."""
    return tuple(dict.fromkeys(_WARNING.findall(report)))
