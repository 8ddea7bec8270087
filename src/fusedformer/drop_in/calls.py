"""How often a drop-in served an op, by which implementation, and how often it left one to PyTorch, and why.

Counts are kept beside modules, not in them: a module's attributes, its copies and its pickles know nothing of them, and
its counts go when it goes. A count costs a few lookups of a dictionary. Inside a graph of `torch.compile` nothing is
counted: what runs there is the graph, not this Python.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fusedformer.kernels import emulation


@dataclass
class Calls:
    """Counts of one owner, or of several together."""

    served: Counter[tuple[str, torch.device, bool]] = field(default_factory=Counter)
    """By op, device, and whether the device code was emulated."""
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By op and reason."""

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.served + other.served, self.fallbacks + other.fallbacks)

    def count(self, op: str) -> int:
        """How often `op` was served."""
        return sum(count for (name, _, _), count in self.served.items() if name == op)


_nobody = Calls()
_by_owner: dict[int, Calls] = {}


def served(owner: nn.Module | None, op: str, x: Tensor) -> None:
    """Count a call of `op`, by its stem in kernels/, that a drop-in served where `x` is.

    `owner` is the module that called; None where a hook of PyTorch's does not tell.
    """
    if not torch.compiler.is_compiling():
        _of(owner).served[op, x.device, emulation.is_active()] += 1


def fell_back(owner: nn.Module | None, op: str, reason: str) -> None:
    """Count a call of `op` that PyTorch computed in our place, with the reason, for people."""
    if not torch.compiler.is_compiling():
        _of(owner).fallbacks[op, reason] += 1


def of(owners: Iterable[nn.Module | None]) -> Calls:
    """The counts of all `owners` together; of None, those that have no owner."""
    found = Calls()
    for owner in owners:
        found += _nobody if owner is None else _by_owner.get(id(owner), Calls())
    return found


def forget(owners: Iterable[nn.Module | None]) -> None:
    """Let the counts of `owners` start at 0 again."""
    for owner in owners:
        calls = _nobody if owner is None else _by_owner.get(id(owner), Calls())
        calls.served.clear()
        calls.fallbacks.clear()


def _of(owner: nn.Module | None) -> Calls:
    if owner is None:
        return _nobody
    calls = _by_owner.get(id(owner))
    if calls is None:
        calls = _by_owner[id(owner)] = Calls()
        # By identity, for a module may be unhashable; so its counts have to go before another one gets its id.
        weakref.finalize(owner, _by_owner.pop, id(owner), None).atexit = False
    return calls
