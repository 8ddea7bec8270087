"""Damage to files, which every reader of one has to answer with a ValueError that names the file."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def check_truncated(path: Path, read: Callable[[], Any], n_cuts: int = 60) -> None:
    """Every shorter file is refused by name; `n_cuts` lengths are tried, the shortest and the longest among them."""
    whole = path.read_bytes()
    lengths = {len(whole) * cut // n_cuts for cut in range(n_cuts)} | {1, len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=path.name):
            read()
    path.write_bytes(whole)


def check_damaged(path: Path, read: Callable[[], Any], within: int, n_damages: int = 400, seed: int = 0) -> None:
    """A file with any few of its first `within` bytes changed is read, or refused by name: nothing else is raised."""
    whole, draw = path.read_bytes(), random.Random(seed)
    refused = 0
    for _ in range(n_damages):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 8])):
            damaged[draw.randrange(within)] = draw.choice([0, 1, 0x7F, 0xFF, draw.randrange(256)])
        path.write_bytes(damaged)
        try:
            read()
        except ValueError as error:
            refused += 1
            if path.name not in str(error):
                raise AssertionError(f"the message does not name {path.name}") from error
    path.write_bytes(whole)
    assert refused, "no damage was noticed"
