"""What machine code says of a kernel: its instructions, disassembled from a cubin and counted.

nvdisasm reads sm_80 to sm_120 and comes with the Triton wheel; a CUDA toolkit's serves as well.
Source of the instruction names: CUDA Binary Utilities, "Instruction Set Reference".
"""

import functools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
# LDGSTS copies from global to shared memory without a register between.
_GLOBAL_LOADS = frozenset({"LDG", "LDGSTS"})
_GLOBAL_STORES = frozenset({"STG"})
_LOCAL_ACCESSES = frozenset({"LDL", "STL"})
_WIDE = frozenset({"128", "256"})


@dataclass(frozen=True)
class InstructionMix:
    """Instruction counts of one kernel, each as it stands in the code: a loop's body counts once.

    Args:
        matrix: matrix instructions by mnemonic, such as {"HGMMA": 16}.
        global_loads: loads from global memory, copies to shared memory included; bulk (TMA) copies are not.
        global_loads_128: those of 128 bits or more per thread.
        global_stores: stores to global memory.
        global_stores_128: those of 128 bits or more per thread.
        local_accesses: loads and stores of local memory: spills, and arrays that registers cannot index.
    """

    matrix: dict[str, int]
    global_loads: int
    global_loads_128: int
    global_stores: int
    global_stores_128: int
    local_accesses: int


def disassemble(cubin: Path) -> str:
    """What `nvdisasm -c` prints of the file `cubin`.

    Raises:
        FileNotFoundError: there is no nvdisasm.
        RuntimeError: nvdisasm cannot read the file; its message is quoted.
    """
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise FileNotFoundError("nvdisasm is neither in the triton package nor on PATH")
    done = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm cannot read {cubin.name}: {done.stderr.strip()}")
    return done.stdout


def instruction_mixes(disassembly: str) -> dict[str, InstructionMix]:
    """Count the instructions of every kernel, by (mangled) kernel name."""
    return {kernel: count(opcodes) for kernel, opcodes in parse(disassembly).items()}


@functools.cache
def find_nvdisasm() -> str | None:
    """Path of nvdisasm: the Triton wheel's, else the one on PATH, else None."""
    triton = find_spec("triton")
    if triton and triton.origin:
        shipped = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        if shipped.is_file():
            return str(shipped)
    return shutil.which("nvdisasm")


def parse(disassembly: str) -> dict[str, Counter[str]]:
    """Count the full opcodes, such as LDG.E.128, of each kernel in the output of `nvdisasm -c`."""
    kernels: dict[str, Counter[str]] = {}
    opcodes: Counter[str] = Counter()
    for line in disassembly.splitlines():
        if section := _SECTION.match(line):
            opcodes = kernels.setdefault(section[1], Counter())
        elif instruction := _INSTRUCTION.match(line):
            opcodes[instruction[1]] += 1
    return kernels


def count(opcodes: Counter[str]) -> InstructionMix:
    """Sum up the opcodes of one kernel."""
    matrix: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        mnemonic = opcode.split(".")[0]
        if mnemonic.endswith("MMA"):
            matrix[mnemonic] += count
    return InstructionMix(
        matrix=dict(sorted(matrix.items())),
        global_loads=_count(opcodes, _GLOBAL_LOADS),
        global_loads_128=_count(opcodes, _GLOBAL_LOADS, _WIDE),
        global_stores=_count(opcodes, _GLOBAL_STORES),
        global_stores_128=_count(opcodes, _GLOBAL_STORES, _WIDE),
        local_accesses=_count(opcodes, _LOCAL_ACCESSES),
    )


def _count(opcodes: Counter[str], mnemonics: Iterable[str], modifiers: frozenset[str] | None = None) -> int:
    """Count the opcodes of these mnemonics, and where modifiers are given, those with one of them."""
    total = 0
    for opcode, count in opcodes.items():
        mnemonic, *given = opcode.split(".")
        # Whole modifiers: LTC128B is a hint to the cache, not a width.
        if mnemonic in mnemonics and (modifiers is None or modifiers.intersection(given)):
            total += count
    return total
