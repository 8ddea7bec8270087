"""One Triton kernel as it is shipped: all that an ahead-of-time compile needs, as data."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One specialisation of one Triton kernel, in the terms of `triton.compiler.ASTSource`.

    Attributes:
        op: the op's stem, such as "attention".
        kernel: the kernel's function name in `module`.
        module: dotted name of the module to import.
        name: what tells this variant from the others of its kernel, such as "bf16 d128 causal".
        signature: a Triton type for every argument, in order: "*bf16", "i32", "fp32", "constexpr", or a tuple of these
            for an argument that is a tuple.
        constexprs: value of every constexpr, by argument name, or by path, such as (4, 3), inside a tuple.
        attrs: what is known of a value, by path, such as {(0,): [["tt.divisibility", 16]]}.
        num_warps: warps of a program.
        num_stages: tiles in flight in its software-pipelined loops.
    """

    op: str
    kernel: str
    module: str
    name: str
    signature: dict[str, Any]
    constexprs: dict[str | tuple[int, ...], Any]
    attrs: dict[tuple[int, ...], list[Any]]
    num_warps: int
    num_stages: int
