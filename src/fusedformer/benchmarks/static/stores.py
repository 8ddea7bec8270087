"""What one element costs: the instructions of the loop that stores a kernel's results, once round.

The loop is the shortest way from a 128-bit store back to that store, on which no narrower access of global memory lies:
what unaligned rows take is not on it, nor is a subroutine.
"""

from collections import deque

from fusedformer.benchmarks.static import control_flow
from fusedformer.benchmarks.static.control_flow import Code, Instruction

_WIDE = ("128", "256")


def instructions_per_16_bytes(disassembly: str) -> dict[str, float]:
    """By (mangled) kernel name, from the output of `nvdisasm -c`: how many instructions a 16-byte store takes.

    A kernel without a loop that stores 16 bytes at a time is not in it; of several loops the best counts.
    """
    found = {kernel: _best_loop(code) for kernel, code in control_flow.parse(disassembly).items()}
    return {kernel: instructions for kernel, instructions in found.items() if instructions is not None}


def _best_loop(code: Code) -> float | None:
    stored = [_stored(instruction) for instruction in code.instructions]
    loops = [_loop(code, place) for place, count in enumerate(stored) if count]
    return min((len(loop) / sum(stored[place] for place in loop) for loop in loops if loop), default=None)


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


def _stored(instruction: Instruction) -> int:
    """How many times 16 bytes this instruction stores."""
    if instruction.mnemonic != "STG":
        return 0
    return next((int(width) // 128 for width in _WIDE if width in instruction.modifiers), 0)


def _is_off_the_path(instruction: Instruction) -> bool:
    if instruction.mnemonic in ("LDG", "STG"):
        return not instruction.modifiers.intersection(_WIDE)
    return instruction.mnemonic == "CALL"
