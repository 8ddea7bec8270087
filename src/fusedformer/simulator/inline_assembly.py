"""The instructions that kernels write as inline assembly: named barriers, the proxy fence, and approximations.

bar.sync 4, 256;    arrive at named barrier 4, which awaits 256 threads, and wait for the rest of them
bar.arrive 4, 256;  arrive, without the wait

Four numbers rounded to one word of float8 are several instructions with registers of their own, taken as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedformer.simulator.errors import UnsupportedError
from fusedformer.simulator.program import WARP, Program
from fusedformer.simulator.values import data_of, narrowed, wrap

BARRIER = re.compile(r"bar(?:rier)?(?:\.cta)?\.(sync|arrive)(?:\.aligned)?\s+(\S+?)\s*,\s*(\S+)")
FENCE = re.compile(r"fence\.proxy\.async(\.\S+)?")
ZERO = re.compile(r"mov\.\w+\s+\$0\s*,\s*0")  # the result that Triton wants of an instruction without one
WORD_OF_E4M3 = re.compile(
    r"\{\s*\.reg \.b16 (\w+), (\w+);"
    r"\s*cvt\.rn\.satfinite\.e4m3x2\.f32 \1, \$(\d), \$(\d);\s*cvt\.rn\.satfinite\.e4m3x2\.f32 \2, \$(\d), \$(\d);"
    r"\s*mov\.b32 \$0, \{\1, \2\};\s*\}"
)
UNARY = re.compile(r"(ex2|lg2|tanh|rcp|sqrt|rsqrt)\.approx(?:\.ftz)?\.f32\s+\$0\s*,\s*\$1")
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ex2": torch.exp2,
    "lg2": torch.log2,
    "tanh": torch.tanh,
    "rcp": torch.reciprocal,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
}


def run_assembly(program: Program, assembly: str, arguments: Sequence[Any], dtype: torch.dtype) -> Any:
    """Execute the instructions, and give what they leave in $0 (0 if nothing)."""
    if match := WORD_OF_E4M3.fullmatch(assembly.strip()):
        return _word_of_e4m3([arguments[int(place) - 1] for place in match.groups()[2:]])
    result: Any = torch.zeros((), dtype=dtype)
    for instruction in filter(None, (part.strip() for part in re.split(r"[;\n]", assembly))):
        if match := BARRIER.fullmatch(instruction):
            number, threads = (_operand(text, arguments) for text in match.groups()[1:])
            _arrive(program, number, threads, is_wait=match[1] == "sync")
        elif FENCE.fullmatch(instruction):
            program.partition.past.fence()
        elif match := UNARY.fullmatch(instruction):
            result = FUNCTIONS[match[1]](torch.as_tensor(data_of(arguments[0]), dtype=torch.float32))
        elif not ZERO.fullmatch(instruction):
            raise UnsupportedError(f"inline assembly {instruction!r}")
    return wrap(result)


def _word_of_e4m3(arguments: Sequence[Any]) -> Any:
    """Of each pair, that for the upper half comes first."""
    second, first, fourth, third = (narrowed(data_of(x), torch.float8_e4m3fn) for x in arguments)
    return wrap(torch.stack((first, second, third, fourth), -1).view(torch.int32).squeeze(-1))


def _operand(text: str, arguments: Sequence[Any]) -> int:
    return int(arguments[int(text[1:]) - 1]) if text.startswith("$") else int(text)


def _arrive(program: Program, number: int, threads: int, *, is_wait: bool) -> None:
    barrier = program.named_barrier(number)
    partition = program.scheduler.step()
    this_round = barrier.arrive(partition.past, WARP * partition.num_warps, threads)
    if is_wait:
        program.scheduler.step(
            lambda: barrier.round > this_round, lambda: f"round {this_round} of {barrier.name}, {barrier.state()}"
        )
        partition.past.join(barrier.released)
