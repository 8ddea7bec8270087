"""What the options of `fusedformer profile` mean."""

import re

from fusedformer.benchmarks.options import quantity, some_of
from fusedformer.benchmarks.profile.contenders import CONTENDERS
from fusedformer.benchmarks.profile.steps import MODES

LENGTH_UNITS = {"": 1, "k": 2**10, "m": 2**20}
MEMORY_UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}
LONGEST = 2**27


def parse_length(text: str) -> int:
    """A number of tokens such as 512, 4k or 1m, of 1,024 and its square.

    Raises:
        ValueError: it is not of that form, or not from 1 to 2^27.
    """
    match = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    length = int(match[1]) * LENGTH_UNITS[match[2]] if match else 0
    if not 1 <= length <= LONGEST:
        raise ValueError(f"{text!r} is no length from 1 to {LONGEST}: write one such as 512, 4k or 1m")
    return length


def parse_contexts(text: str) -> list[int]:
    """Lengths such as 1k,4k or 1k:1m:x2, which doubles from the first to the last; ascending, each once.

    Raises:
        ValueError: a part is not of that form.
    """
    lengths: set[int] = set()
    for part in text.split(","):
        first, *rest = part.split(":")
        if not rest:
            lengths.add(parse_length(first))
            continue
        factor = re.fullmatch(r"x(\d+)", rest[1].strip()) if len(rest) == 2 else None
        low, high = parse_length(first), parse_length(rest[0])
        if factor is None or int(factor[1]) < 2 or low > high:
            raise ValueError(f"{part!r} is no range of lengths: write one such as 1k:1m:x2")
        while low <= high:
            lengths.add(low)
            low *= int(factor[1])
    return sorted(lengths)


def parse_modes(text: str) -> list[str]:
    """Modes by name.

    Raises:
        ValueError: one of them is not known.
    """
    return some_of("mode", text, MODES)


def parse_attentions(text: str) -> list[str]:
    """Attentions by name.

    Raises:
        ValueError: one of them is not known.
    """
    return some_of("attention", text, CONTENDERS)


def parse_memory(text: str) -> float:
    """Bytes of a size such as 141GiB or 80GB.

    Raises:
        ValueError: it is not of that form, or not above 0.
    """
    return quantity("size of memory", text, MEMORY_UNITS, "141GiB or 80GB")
