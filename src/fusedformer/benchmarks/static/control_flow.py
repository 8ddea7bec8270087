"""The control flow of machine code: a disassembly as instructions, and where each may lead.

Source of the instruction names: CUDA Binary Utilities, "Instruction Set Reference".
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);?")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_BARRIER = re.compile(r"\bB\d+\b")
_REGISTER = re.compile(r"R\d+")


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly, such as @P0 BRA.U `(.L_x_1)."""

    opcode: str  # with its modifiers
    operands: str
    guard: str = ""  # the predicate under which it is executed, such as !P0 or, never, !PT; empty if always

    @cached_property
    def mnemonic(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @cached_property
    def modifiers(self) -> frozenset[str]:
        """Those of the opcode."""
        return frozenset(self.opcode.split(".")[1:])

    @cached_property
    def target(self) -> str:
        """The label among the operands; empty if there is none."""
        found = _TARGET.search(self.operands)
        return found[1] if found else ""

    @property
    def sources(self) -> str:
        """The operands without the register that is written; addresses and predicates are no such."""
        first, _, rest = self.operands.partition(",")
        return rest if _REGISTER.fullmatch(first) else self.operands


@dataclass
class Code:
    """One kernel: its instructions in order, and the place of the instruction that follows each label."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def followers(self, place: int) -> list[int]:
        """The places where a thread may go from here."""
        instruction = self.instructions[place]
        label = self._meetings.get(place, instruction.target if instruction.mnemonic in ("BRA", "CALL") else "")
        places = [self.labels[label]] if label in self.labels else []
        # Calls return. The predicate of a branch may stand among its operands, as in BRA.U UP0, `(.L_x_1).
        leaves = instruction.mnemonic in ("EXIT", "RET") or (places and instruction.mnemonic in ("BRA", "BSYNC"))
        is_conditional = instruction.guard or "," in instruction.operands.partition("`")[0]
        if is_conditional or not leaves:
            places.append(place + 1)
        return [place for place in places if place < len(self.instructions)]

    @cached_property
    def _meetings(self) -> dict[int, str]:
        """Of each BSYNC the label where its threads meet again, which the last BSSY of the same barrier names."""
        meetings: dict[int, str] = {}
        labels: dict[str, str] = {}
        for place, instruction in enumerate(self.instructions):
            if barrier := _BARRIER.search(instruction.operands):
                if instruction.mnemonic == "BSSY":
                    labels[barrier[0]] = instruction.target
                elif instruction.mnemonic == "BSYNC" and barrier[0] in labels:
                    meetings[place] = labels[barrier[0]]
        return meetings


def parse(disassembly: str) -> dict[str, Code]:
    """By (mangled) kernel name, the code in what `nvdisasm -c` prints."""
    kernels: dict[str, Code] = {}
    code = Code()
    for line in disassembly.splitlines():
        if section := _SECTION.match(line):
            code = kernels.setdefault(section[1], Code())
        elif label := _LABEL.match(line):
            code.labels[label[1]] = len(code.instructions)
        elif found := _INSTRUCTION.match(line):
            code.instructions.append(Instruction(found[2], found[3].strip(), found[1] or ""))
    return kernels
