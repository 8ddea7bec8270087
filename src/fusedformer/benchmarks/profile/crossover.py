"""Where attention takes over: the context from which it is half of the step, and from which ours passes a reference."""

from collections.abc import Callable, Iterator, Mapping

from fusedformer.benchmarks.profile.cells import CROSSOVER, MEASURED, MODELLED, PREDICTED, Cell, Obtained
from fusedformer.benchmarks.profile.contenders import MATH, OURS
from fusedformer.benchmarks.profile.measure import NotMeasuredError
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.times import TimesAt

SHORTEST, LONGEST = 2**7, 2**24
HALF = 0.5
HALF_OF_STEP, PASSES = "attention is half of the step", "ours is faster than"


def crossovers(settings: Mapping[str, Setting], times: Mapping[str, TimesAt], machine: str) -> Iterator[Cell]:
    """The cells of one mode.

    Args:
        settings: by attention.
        times: likewise.
        machine: what they are times of.
    """
    for attention, setting in settings.items():
        yield _cell(setting, HALF_OF_STEP, machine, times[attention], lambda s, a=attention: _is_half(times[a], s))  # type: ignore[misc]
    for attention, setting in settings.items():
        if attention == OURS or OURS not in settings:
            continue
        what = f"{PASSES} {attention}"
        if attention != MATH and _obtained(times[OURS]) == MODELLED:
            yield _nothing(setting, what, "a model does not rank two fused kernels: they do the same work")
            continue
        yield _cell(setting, what, machine, times[OURS], lambda s, a=attention: _is_faster(times[OURS], times[a], s))  # type: ignore[misc]


def first_context(holds: Callable[[int], bool]) -> int | None:
    """The shortest context from which on it holds at every doubling looked at; None if it never does."""
    high = LONGEST
    if not holds(high):
        return None
    while holds(high // 2):
        high //= 2
        if high == SHORTEST:
            return SHORTEST
    low = high // 2
    while high - low > max(1, low // 256):  # to three digits
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _is_half(times: TimesAt, context: int) -> bool:
    return times.at(context).attention_share >= HALF


def _is_faster(ours: TimesAt, theirs: TimesAt, context: int) -> bool:
    return ours.at(context).step < theirs.at(context).step


def _obtained(times: TimesAt) -> Obtained:
    """How figures between those of the table are obtained."""
    try:
        obtained = times.at(SHORTEST).obtained
    except NotMeasuredError:
        return ""
    return PREDICTED if obtained == MEASURED else obtained


def _cell(setting: Setting, what: str, machine: str, times: TimesAt, holds: Callable[[int], bool]) -> Cell:
    try:
        found = first_context(holds)
    except NotMeasuredError as error:
        return _nothing(setting, what, str(error))
    if found is None:
        return _nothing(setting, what, f"not up to {LONGEST}")
    return setting.cell(
        CROSSOVER,
        quantity=what,
        value=found,
        unit=setting.subject.unit,
        obtained=_obtained(times),
        machine=machine,
        reason=f"from {SHORTEST} or less" if found == SHORTEST else "",
    )


def _nothing(setting: Setting, what: str, reason: str) -> Cell:
    return setting.cell(CROSSOVER, quantity=what, reason=reason)
