"""What options of the command line have in common: names from a known set."""

from collections.abc import Collection


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
