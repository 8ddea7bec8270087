"""What options of the command line have in common: names from a known set, numbers with a unit, seeds."""

import re
from collections.abc import Collection, Mapping

UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


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


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90, 480s, 8m or 1.5h.

    Raises:
        ValueError: it is not of that form, or not above 0.
    """
    return quantity("duration", text, UNITS_S, "480s, 8m or 1h")


def parse_seed(text: str) -> int:
    """The seed of a random number generator.

    Raises:
        ValueError: it is no integer from 0 to 2**63 - 1.
    """
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**63:
        raise ValueError(f"seed {text!r} is no integer from 0 to 2**63 - 1")
    return int(text)
