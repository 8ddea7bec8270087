"""What one element costs: the instructions of the loop that stores a kernel's results, once round.

The loop is looked for in the control flow of the machine code. It is the shortest way from a 128-bit store back to that
store, on which no narrower access of global memory lies: what unaligned rows take is not on it, nor is a subroutine.
"""

import re
from collections import deque
from dataclasses import dataclass, field

_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<predicate>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*)"
)
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_BARRIER = re.compile(r"\bB\d+\b")
_WIDE = ("128", "256")


@dataclass
class _Code:
    """One kernel: its instructions in order, and where its labels stand."""

    opcodes: list[list[str]] = field(default_factory=list)  # each with its modifiers
    targets: list[str] = field(default_factory=list)  # of branches; else empty
    conditional: list[bool] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    meetings: dict[str, str] = field(default_factory=dict)  # where threads meet again, by barrier

    def append(self, instruction: re.Match[str]) -> None:
        opcode = instruction["opcode"].split(".")
        target = _TARGET.search(instruction["operands"])
        label = target[1] if target and opcode[0] == "BRA" else ""
        if barrier := _BARRIER.search(instruction["operands"]):
            if opcode[0] == "BSSY" and target:
                self.meetings[barrier[0]] = target[1]
            elif opcode[0] == "BSYNC":
                label = self.meetings.get(barrier[0], "")
        self.opcodes.append(opcode)
        self.targets.append(label)
        self.conditional.append(bool(instruction["predicate"]) or "," in instruction["operands"].partition("`")[0])

    def next(self, index: int) -> list[int]:
        """The instructions that may follow."""
        following = [self.labels[self.targets[index]]] if self.targets[index] in self.labels else []
        jumps = self.opcodes[index][0] in ("EXIT", "RET") or (following and self.opcodes[index][0] in ("BRA", "BSYNC"))
        if (self.conditional[index] or not jumps) and index + 1 < len(self.opcodes):
            following.append(index + 1)
        return following


def instructions_per_16_bytes(disassembly: str) -> dict[str, float]:
    """By (mangled) kernel name, from the output of `nvdisasm -c`: how many instructions a 16-byte store takes.

    A kernel without a loop that stores 16 bytes at a time is not in it; of several loops the best counts.
    """
    found = {kernel: _best_loop(code) for kernel, code in _parse(disassembly).items()}
    return {kernel: instructions for kernel, instructions in found.items() if instructions is not None}


def _parse(disassembly: str) -> dict[str, _Code]:
    kernels: dict[str, _Code] = {}
    code = _Code()
    for line in disassembly.splitlines():
        if section := _SECTION.match(line):
            code = kernels.setdefault(section[1], _Code())
        elif label := _LABEL.match(line):
            code.labels[label[1]] = len(code.opcodes)
        elif instruction := _INSTRUCTION.match(line):
            code.append(instruction)
    return kernels


def _best_loop(code: _Code) -> float | None:
    loops = [_loop(code, index) for index in range(len(code.opcodes)) if _stored(code, index)]
    costs = [len(loop) / sum(_stored(code, index) for index in loop) for loop in loops if loop]
    return min(costs, default=None)


def _loop(code: _Code, start: int) -> list[int]:
    """The shortest way from `start` back to it, as instructions; empty if there is none."""
    came_from: dict[int, int] = {}
    queue = deque([start])
    while queue and start not in came_from:
        index = queue.popleft()
        for following in code.next(index):
            if following not in came_from and not _is_off_the_path(code.opcodes[following]):
                came_from[following] = index
                queue.append(following)
    loop: list[int] = []
    index = start
    while start in came_from and (not loop or index != start):
        index = came_from[index]
        loop.append(index)
    return loop


def _stored(code: _Code, index: int) -> int:
    """How many times 16 bytes this instruction stores."""
    mnemonic, *modifiers = code.opcodes[index]
    width = next((width for width in _WIDE if width in modifiers), "0")
    return int(width) // 128 if mnemonic == "STG" else 0


def _is_off_the_path(opcode: list[str]) -> bool:
    mnemonic, *modifiers = opcode
    return mnemonic == "CALL" or (mnemonic in ("LDG", "STG") and not set(_WIDE) & set(modifiers))
