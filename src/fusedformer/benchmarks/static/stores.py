"""What one element costs: the instructions of the loops that go over a tensor, or over a row, each once round.

A round is the shortest way from a 128-bit access of global memory back to it, on which no narrower access lies: what
unaligned rows take is not on it, nor is a subroutine, nor what may be left out, such as a weight.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from fusedformer.benchmarks.static import control_flow
from fusedformer.benchmarks.static.control_flow import Code, Instruction

_WIDE = ("128", "256")


class Round(NamedTuple):
    """One way through a loop: how many instructions, and how many times 16 bytes they store."""

    instructions: int
    stores: int


def passes(disassembly: str) -> dict[str, list[list[Round]]]:
    """By (mangled) kernel name, from the output of `nvdisasm -c`: loops that load 16 bytes at a time, all ways of each.

    What only stores, such as zeros where a row sees nothing, is for other elements, and left out.
    """
    return {kernel: list(_passes(code)) for kernel, code in control_flow.parse(disassembly).items()}


def instructions_per_16_bytes(found: list[list[Round]], outputs: int) -> float:
    """Instructions for 16 bytes of each tensor, the best ways through all passes.

    Args:
        found: the passes of one kernel. Of those that store the best counts: what is left over from unrolled rounds has
            a loop of its own.
        outputs: how many tensors it stores: a round with more stores is one of several 16 bytes.
    """
    reading = [min(way.instructions for way in ways) for ways in found if not any(way.stores for way in ways)]
    storing = [way.instructions / max(1, way.stores // outputs) for ways in found for way in ways if way.stores]
    return sum(reading) + min(storing, default=0)


def _passes(code: Code) -> Iterator[list[Round]]:
    """Loops that have an instruction in common are ways of the same pass."""
    passes: list[list[frozenset[int]]] = []
    for place, instruction in enumerate(code.instructions):
        if not _is_wide(instruction) or not (loop := frozenset(_loop(code, place))):
            continue
        same = [loops for loops in passes if any(loop & other for other in loops)]
        passes = [loops for loops in passes if loops not in same]
        passes.append([loop, *(other for loops in same for other in loops)])
    for loops in passes:
        ways = [[code.instructions[place] for place in loop] for loop in loops]
        if any(instruction.mnemonic == "LDG" for way in ways for instruction in way):
            yield [Round(len(way), sum(map(_stored, way))) for way in ways]


def _loop(code: Code, start: int) -> list[int]:
    """The shortest way from `start` back to it, as places; empty if there is none."""
    came_from: dict[int, int] = {}
    queue = deque([start])
    while queue and start not in came_from:
        place = queue.popleft()
        for follower in code.followers(place):
            if follower not in came_from and not _is_off_the_path(code.instructions[follower]):
                came_from[follower] = place
                queue.append(follower)
    loop: list[int] = []
    place = start
    while start in came_from and (not loop or place != start):
        place = came_from[place]
        loop.append(place)
    return loop


def _is_wide(instruction: Instruction) -> bool:
    return instruction.mnemonic in ("LDG", "STG") and not instruction.modifiers.isdisjoint(_WIDE)


def _stored(instruction: Instruction) -> int:
    """How many times 16 bytes this instruction stores."""
    if instruction.mnemonic != "STG":
        return 0
    return next((int(width) // 128 for width in _WIDE if width in instruction.modifiers), 0)


def _is_off_the_path(instruction: Instruction) -> bool:
    return instruction.mnemonic in ("LDG", "STG", "CALL") and not _is_wide(instruction)
