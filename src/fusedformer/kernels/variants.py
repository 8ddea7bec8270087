"""One Triton kernel as it is shipped: all that an ahead-of-time compile needs, as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CONSTEXPR = "constexpr"
_MULTIPLE_OF_16 = [["tt.divisibility", 16]]


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
        has_steady_loop: whether it promises a loop over whole tiles, with matrix products and without masks.
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
    has_steady_loop: bool = False


def specialize(
    arguments: Sequence[str], constants: dict[str | tuple[int, ...], Any], kind_of: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[tuple[int, ...], list[Any]]]:
    """Signature and attrs of a kernel with these arguments, pointers and strides taken for multiples of 16.

    Args:
        arguments: names, in order.
        constants: values of compile-time arguments, by name; those of absent arguments and of dense last strides are
            added, by path.
        kind_of: gives the Triton type of any other argument; that of a tuple is a tuple, a named one if it is not
            strides.
    """
    signature: dict[str, Any] = {}
    attrs: dict[tuple[int, ...], list[Any]] = {}

    def settle(kind: Any, path: tuple[int, ...], in_strides: bool = False) -> None:
        if isinstance(kind, tuple):
            for index, part in enumerate(kind):
                settle(part, (*path, index), not hasattr(kind, "_fields"))
        elif kind == CONSTEXPR:
            constants[path] = 1 if in_strides else None
        elif kind.startswith("*") or in_strides:
            attrs[path] = _MULTIPLE_OF_16

    for index, argument in enumerate(arguments):
        if argument in constants:
            signature[argument] = CONSTEXPR
        else:
            signature[argument] = kind_of(argument)
            settle(signature[argument], (index,))
    return signature, attrs
