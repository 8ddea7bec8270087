"""A planted bug, as data: one edit of one line, of a kind that kernels really get wrong."""

from dataclasses import dataclass

WRONG_VALUE = "times its budget"


@dataclass(frozen=True)
class Bug:
    """One edit, and the tests that must notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    symptom: str = WRONG_VALUE
    slow: bool = False  # further bugs of a kind that the others stand for in `make test`
