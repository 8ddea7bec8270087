"""The longest context that fits into a memory, what fills it there, and what would double it.

Exact but for the kernels' own workspace, which is estimated, and what the allocator loses to fragments and PyTorch to
its context: a fit to the last byte does not fit.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fusedformer.benchmarks.profile.cells import FIT, PEAK, PREDICTED, Cell
from fusedformer.benchmarks.profile.changes import CHANGES, CHUNKED_MLP
from fusedformer.benchmarks.profile.family import Family, IrregularError
from fusedformer.benchmarks.profile.profiler import META, Setting
from fusedformer.benchmarks.profile.steps import DECODE, PREFILL, TRAIN, NoSuchStepError
from fusedformer.benchmarks.profile.subjects import DTYPE, Subject, build_on

LONGEST = 2**27  # contexts that are looked for
DEGREES = (2, 4, 8, 16, 32, 64)
RING_BUFFERS = 2  # of keys and values: those that a device computes with, and those that come in meanwhile
MOST_HELD = 5
CHANGES_OF = {TRAIN: CHANGES, PREFILL: (CHUNKED_MLP,), DECODE: ()}  # that help; without a backward, few do

LARGEST, HELD = "largest context", "held at the peak"
DEGREE = "context parallel"


def fit(setting: Setting, family: Family, memory: float, low: int, high: int, machine: str) -> Iterator[Cell]:
    """The cells of one attention: the largest context, what is held there, and the largest with each change.

    Args:
        setting: the step.
        family: its traces.
        memory: bytes.
        low: the shortest context that is asked for.
        high: the longest one.
        machine: whose memory it is.
    """
    make = _Cells(setting, machine)
    largest = largest_context(setting.subject, family, memory)
    yield make.length(LARGEST, largest, f"in {memory / 2**30:.4g} GiB")
    at = largest or setting.subject.length(low)
    for held in family.held_at_peak(at)[:MOST_HELD]:
        text = " ".join(filter(None, (held.kind, held.what, f"x {held.count}")))
        yield make.size(at, f"{HELD}: {text}", held.n_bytes)
    goal = 2 * largest if largest else low
    yield from _changed(make, setting, memory, low, high, goal)
    yield from _parallel(make, setting, family, memory, goal)


def largest_context(subject: Subject, family: Family, memory: float, extra_per_token: float = 0.0) -> int:
    """The longest context that fits beside `extra_per_token` more bytes for each token; 0 if none does."""
    found = family.largest(lambda sheet, context: sheet.peak + extra_per_token * context <= memory, LONGEST)
    return subject.shorter(found)


def kv_bytes(subject: Subject) -> float:
    """Bytes of the keys and values of one layer for each token; 0 where the model does not say."""
    config = getattr(build_on(META, subject, subject.length(1024), 1).model, "config", None)
    if config is None or not hasattr(config, "head_dim"):
        return 0.0
    return 2.0 * (config.n_kv_heads or config.n_heads) * config.head_dim * DTYPE.itemsize


class _Cells:
    """Cells of one setting."""

    def __init__(self, setting: Setting, machine: str) -> None:
        self._setting, self._machine = setting, machine

    def length(self, component: str, value: int, reason: str) -> Cell:
        """A context length."""
        return self._predicted(component, LARGEST, value, self._setting.subject.unit, reason=reason)

    def size(self, context: int, component: str, value: float) -> Cell:
        """Bytes at a context."""
        return self._predicted(component, PEAK, value, "B", context=context)

    def nothing(self, component: str, reason: str) -> Cell:
        """No figure."""
        return self._setting.cell(FIT, component=component, quantity=LARGEST, reason=reason)

    def _predicted(self, component: str, quantity: str, value: float, unit: str, **others: Any) -> Cell:
        return self._setting.cell(
            FIT, component=component, quantity=quantity, value=value, unit=unit, obtained=PREDICTED,
            machine=self._machine, **others,
        )  # fmt: skip


def _changed(make: _Cells, setting: Setting, memory: float, low: int, high: int, goal: int) -> Iterator[Cell]:
    for change in CHANGES_OF[setting.mode]:
        try:
            family = replace(setting, changes=frozenset({change})).family(low, high)
        except (NoSuchStepError, IrregularError, ValueError) as error:
            yield make.nothing(change, str(error))
            continue
        largest = largest_context(setting.subject, family, memory)
        yield make.length(change, largest, _verdict(largest, goal))


def _parallel(make: _Cells, setting: Setting, family: Family, memory: float, goal: int) -> Iterator[Cell]:
    """Each of P devices holds a P-th of the sequence and all weights, and keys and values of one layer in flight."""
    buffers = RING_BUFFERS * kv_bytes(setting.subject) * (2 if setting.mode == TRAIN else 1)
    if not buffers:
        yield make.nothing(DEGREE, "the model does not say how large its keys and values are")
        return
    largest = largest_context(setting.subject, family, memory, buffers)
    degree = next((degree for degree in DEGREES if degree * largest >= goal), None)
    if degree is None:
        yield make.nothing(DEGREE, f"no degree up to {DEGREES[-1]} reaches {goal}")
        return
    yield make.length(f"{DEGREE} {degree}", degree * largest, _verdict(degree * largest, goal))


def _verdict(largest: int, goal: int) -> str:
    return f"{'reaches' if largest >= goal else 'misses'} {goal}"
