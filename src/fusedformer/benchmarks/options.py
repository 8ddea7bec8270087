"""What options of the command line have in common: names from a known set, and numbers with a unit."""

import re
from collections.abc import Collection, Mapping


def one_of(kind: str, name: str, known: Collection[str]) -> str:
    """The name.

    Raises:
        ValueError: it is not known.
    """
    if name not in known:
        raise ValueError(f"no {kind} {name!r}: choose from {', '.join(known)}")
    return name


def some_of(kind: str, text: str, known: Collection[str]) -> list[str]:
    """Names between commas, each once.

    Raises:
        ValueError: some of them are not known.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {kind} {', '.join(map(repr, unknown))}: choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


def quantity(kind: str, text: str, units: Mapping[str, float], examples: str) -> float:
    """A number above 0 with one of the units, such as 1.5h; an empty unit in `units` is one that may be left out.

    Raises:
        ValueError: it is not of that form, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    value = float(match[1]) * units.get(match[2], 0.0) if match else 0.0
    if value <= 0:
        raise ValueError(f"{text!r} is no {kind}: write one such as {examples}")
    return value
