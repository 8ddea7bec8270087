"""The loops of a kernel's machine code, and which of them is the steady one.

A natural loop is all between a branch back and its target, where every way to the branch leads through the target.
The kernels that promise a steady loop (`Variant.has_steady_loop`) walk over tiles twice: first over those that need no
mask, then over those at a boundary. Both are innermost loops with matrix instructions; the steady one is the first and
the shorter.
Source: Aho, Lam, Sethi, Ullman, "Compilers", 2nd edition, section 9.6.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fusedformer.benchmarks.static import control_flow
from fusedformer.benchmarks.static.control_flow import Code, Instruction

# What makes of a selected value an address, a predicate or a count: then it is that of a copy or of a ring of buffers.
_INDEXING = frozenset({"IADD", "IADD3", "IMAD", "ISETP", "LEA", "LOP3", "R2UR", "SHF", "VIADD"})
_COPIES = ("SEL", "IMAD.MOV", "MOV")


@dataclass(frozen=True)
class Loop:
    """The instructions of one loop, in the order of the code."""

    body: tuple[Instruction, ...]

    @cached_property
    def masks(self) -> int:
        """How many instructions choose, in each thread for itself, between a value that is computed with and another.

        These are selects of numbers (FSEL), and those of bits (SEL) whose result is no index: a mask takes one for each
        score, or pair of scores. Those that are the same for a whole warp (USEL) are of no mask.
        """
        return sum(self._is_mask(place) for place in range(len(self.body)))

    def _is_mask(self, place: int) -> bool:
        if self.body[place].mnemonic != "SEL":
            return self.body[place].mnemonic == "FSEL"
        for _ in self.body:  # no chain of copies is longer
            reader = self._reader(place)
            if reader is None or not self.body[reader].opcode.startswith(_COPIES):
                return reader is None or self.body[reader].mnemonic not in _INDEXING
            place = reader
        return True

    def _reader(self, place: int) -> int | None:
        """Which instruction is the next to read what this one writes, in this iteration or the one after it."""
        written = re.compile(rf"\b{self.body[place].operands.partition(',')[0]}\b")
        for step in range(1, len(self.body) + 1):
            reader = (place + step) % len(self.body)
            if written.search(self.body[reader].sources):
                return reader
        return None


def steady_loop(disassembly: str, kernel: str) -> Loop | None:
    """The shortest of the `matrix_loops`; None if there is no loop with matrix instructions."""
    return min(matrix_loops(disassembly, kernel), key=lambda loop: len(loop.body), default=None)


def matrix_loops(disassembly: str, kernel: str) -> list[Loop]:
    """The innermost loops with matrix instructions of one kernel, in the order of the code.

    Args:
        disassembly: what `nvdisasm -c` prints.
        kernel: its (mangled) name.
    """
    code = control_flow.parse(disassembly).get(kernel, Code())
    with_matrix = []
    for places in _natural_loops(code):
        if any(code.instructions[place].mnemonic.endswith("MMA") for place in places):
            with_matrix.append(places)
    innermost = [places for places in with_matrix if not any(other < places for other in with_matrix)]
    return [Loop(tuple(code.instructions[place] for place in sorted(places))) for places in sorted(innermost, key=min)]


def _natural_loops(code: Code) -> list[frozenset[int]]:
    """The places of each loop's instructions; loops with the same head are one."""
    followers = [code.followers(place) for place in range(len(code.instructions))]
    leaders: list[list[int]] = [[] for _ in followers]
    for place, nexts in enumerate(followers):
        for follower in nexts:
            leaders[follower].append(place)
    loops: dict[int, set[int]] = {}
    for place, nexts in enumerate(followers):
        for head in nexts:
            if head <= place and not _can_avoid(followers, head, place):
                loops.setdefault(head, {head}).update(_leading_to(leaders, head, place))
    return [frozenset(places) for places in loops.values()]


def _can_avoid(followers: Sequence[Sequence[int]], head: int, place: int) -> bool:
    """Whether there is a way from the kernel's begin to `place` that leaves `head` out."""
    return place in _reachable(followers, 0, head)


def _leading_to(leaders: Sequence[Sequence[int]], head: int, place: int) -> set[int]:
    """All from where `place` can be reached without going through `head`."""
    return _reachable(leaders, place, head)


def _reachable(neighbours: Sequence[Sequence[int]], start: int, barred: int) -> set[int]:
    seen = {start} - {barred}
    pending = list(seen)
    while pending:
        fresh = {place for place in neighbours[pending.pop()] if place != barred} - seen
        seen |= fresh
        pending += fresh
    return seen
