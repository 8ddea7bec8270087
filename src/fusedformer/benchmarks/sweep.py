"""What `fusedformer bench --sweep` means: NAME=VALUES, such as S=512:128k:x2 D=64,128 causal=0,1 dtype=bf16.

A name is a size of an op (B, S, H, K, D, M, N, V; `rows` is M, and N is V of cross_entropy), one of its options, or
dtype. Each case of the sweep is the op's usual one for this device with these values in the place of its own.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusedformer.benchmarks.harness.op import Case, Op
from fusedformer.benchmarks.profile.options import parse_contexts

DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "half", "float16"), torch.float16),
    **dict.fromkeys(("fp32", "float", "float32"), torch.float32),
}
DTYPE = "dtype"
ALIASES = {"rows": "M", "N": "V"}  # for ops that do not have the name itself
TRUTH = {"0": False, "1": True}
MOST_CASES = 1000


@dataclass(frozen=True)
class Sweep:
    """Values by name, as they were written."""

    values: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        """As the command line takes it."""
        return " ".join(f"{name}={','.join(values)}" for name, values in self.values.items())

    def suits(self, op: Op, device_type: str) -> bool:
        """Whether the op knows every name."""
        return not self._unknown(op, device_type)

    def cases(self, op: Op, device_type: str) -> list[Case]:
        """The cases of one op.

        Raises:
            ValueError: the op does not know a name, a value is none of that name's, or a case makes no sense.
        """
        base = op.time_cases[device_type][0]
        if unknown := self._unknown(op, device_type):
            known = [*base.sizes, *_options(op, device_type), *_dtype_of(base)]
            raise ValueError(f"{op.name} has no {', '.join(unknown)} to sweep: it has {', '.join(known)}")
        names = {_name(name, base): name for name in self.values}
        if len(names) < len(self.values):
            raise ValueError(f"{self} names a size of {op.name} twice")
        choices = [self._choices(op, device_type, own, given) for own, given in names.items()]
        total = 1
        for values in choices:
            total *= len(values)
        if total > MOST_CASES:
            raise ValueError(f"{self} makes {total} cases of {op.name}, at most {MOST_CASES} are measured")
        return [_case(op, base, dict(zip(names, chosen))) for chosen in itertools.product(*choices)]

    def _unknown(self, op: Op, device_type: str) -> list[str]:
        base = op.time_cases[device_type][0]
        known = {*base.sizes, *_options(op, device_type), *_dtype_of(base)}
        return [name for name in self.values if _name(name, base) not in known]

    def _choices(self, op: Op, device_type: str, own: str, given: str) -> list[Any]:
        texts = self.values[given]
        if own == DTYPE:
            return list(dict.fromkeys(_chosen(given, text, DTYPES) for text in texts))
        if own in op.time_cases[device_type][0].sizes:
            return parse_contexts(",".join(texts))
        return [_option_value(given, text, _options(op, device_type)[own]) for text in texts]


def parse_sweep(text: str) -> Sweep:
    """A sweep from its terms, between spaces.

    Raises:
        ValueError: a term is not of the form NAME=VALUES, a name comes twice, or a value is empty.
    """
    values: dict[str, tuple[str, ...]] = {}
    for term in text.split():
        match = re.fullmatch(r"(\w+)=(\S+)", term)
        if match is None:
            raise ValueError(f"{term!r} is no term of a sweep: write one such as S=512:128k:x2 or causal=0,1")
        name, listed = match[1], tuple(match[2].split(","))
        if name in values:
            raise ValueError(f"a sweep has {name} twice: {text!r}")
        if not all(listed):
            raise ValueError(f"{term!r} has an empty value")
        values[name] = listed
    if not values:
        raise ValueError("a sweep needs a term such as S=512:128k:x2")
    return Sweep(values)


def _name(given: str, base: Case) -> str:
    """What the op calls it."""
    other = ALIASES.get(given, given)
    return other if other in base.sizes and given not in base.sizes else given


def _dtype_of(base: Case) -> list[str]:
    """The name of the dtype, of an op that is not of one alone."""
    return [DTYPE] if base.dtype in DTYPES.values() else []


def _options(op: Op, device_type: str) -> dict[str, set[Any]]:
    """The options of the op's own cases, with their values."""
    found: dict[str, set[Any]] = {}
    for case in (*op.time_cases[device_type], *op.error_cases):
        for name, value in case.options.items():
            found.setdefault(name, set()).add(value)
    return found


def _option_value(name: str, text: str, known: set[Any]) -> Any:
    """Of the kind that the option has in the op's own cases: yes or no, a number, or one of their words."""
    kinds = {type(value) for value in known}
    if kinds == {bool}:
        return _chosen(name, text, TRUTH)
    if kinds == {str}:
        return _chosen(name, text, {value: value for value in sorted(known)})
    try:
        return int(text) if kinds == {int} else float(text)
    except ValueError:
        raise ValueError(f"{name}={text} is no number") from None


def _chosen(name: str, text: str, known: Mapping[str, Any]) -> Any:
    if text not in known:
        raise ValueError(f"{name}={text}: choose from {', '.join(known)}")
    return known[text]


def _case(op: Op, base: Case, chosen: Mapping[str, Any]) -> Case:
    """The base with these values; sizes that balance one of them are worked out, unless they are chosen too."""
    sizes, options = dict(base.sizes), dict(base.options)
    for name, value in chosen.items():
        if name in sizes:
            for other in op.balance.get(name, ()):
                if other not in chosen:
                    sizes[other] = max(1, base.sizes[other] * base.sizes[name] // value)
            sizes[name] = value
        elif name != DTYPE:
            options[name] = value
    if "K" in sizes and sizes["H"] % sizes["K"]:
        raise ValueError(f"{op.name}: H={sizes['H']} query heads cannot share K={sizes['K']} key heads evenly")
    return replace(base, sizes=sizes, options=options, dtype=chosen.get(DTYPE, base.dtype))


def check(sweep: Sweep, ops: Sequence[Op], device_type: str) -> None:
    """Work out the cases of every op, so that what is wrong is said before anything is measured.

    Raises:
        ValueError: as `Sweep.cases`, or there is no op.
    """
    if not ops:
        raise ValueError(f"no op has all of {', '.join(sweep.values)} to sweep")
    for op in ops:
        sweep.cases(op, device_type)
