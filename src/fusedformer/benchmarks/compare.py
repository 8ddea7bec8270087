"""`fusedformer compare RUN_A RUN_B`: of every row that both have, whether B is the same, faster or slower.

The figure is the time of B over that of A: the median over all pairs of a sample of B and one of A (Hodges and Lehmann,
1963), with the interval that their ranks give, which needs no normal law (Conover, "Practical Nonparametric
Statistics", section 5.4). Differences within the noise floor of either run, which ours against ours came to in it, are
none. What lost its time counts as slower: a kernel that is wrong or runs out of memory is no improvement.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusedformer.benchmarks.harness.implementation import is_ours
from fusedformer.benchmarks.harness.timing import LEAST_ROUNDS, Interval
from fusedformer.benchmarks.harness.verdicts import Noise, Verdict, verdict
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import Run
from fusedformer.benchmarks.report.tables import Table, duration

ORDER: tuple[Verdict, ...] = ("SLOWER", "FASTER", "UNSURE", "SAME")  # of the table: what matters first
NORMAL_95 = 1.96  # standard deviations that enclose 95%
NO_RESULT = ("skipped", "missing")  # says nothing of the contender
SAME_MACHINE = ("cpu", "cores", "threads", "gpus")  # of an environment


@dataclass(frozen=True)
class Compared:
    """One row of both runs."""

    a: Row
    b: Row
    ratio: Interval | None  # of B's time over A's; None where either has none
    verdict: Verdict


def compare(a: Run, b: Run) -> list[Compared]:
    """Every row of both runs that has a result in one of them at least, errors and times, the most telling first.

    Raises:
        ValueError: they have none in common.
    """
    margin = max(_noise(run).margin for run in (a, b))
    of_a = {row.key: row for row in a.rows}
    pairs = [(of_a[row.key], row) for row in b.rows if row.key in of_a]
    if not pairs:
        raise ValueError(f"{a.path} and {b.path} have no row in common: nothing to compare")
    found = [_compared(*pair, margin) for pair in pairs if "ok" in (pair[0].status, pair[1].status)]
    return sorted(found, key=lambda one: ORDER.index(one.verdict))


def ratio_interval(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Times of B over times of A, any numbers of them; None where either has too few for an interval."""
    if min(len(a), len(b)) < LEAST_ROUNDS:
        return None
    ratios = sorted(y / x for x in a for y in b)
    n, m = len(a), len(b)
    rank = math.floor(n * m / 2 - NORMAL_95 * math.sqrt(n * m * (n + m + 1) / 12))
    return Interval(ratios[rank - 1], statistics.median(ratios), ratios[-rank])


def tables(a: Run, b: Run, found: Sequence[Compared]) -> list[Table]:
    """What differs between the runs, and the verdict on every row that says more than SAME."""
    return [_difference_table(a, b), _verdict_table(a, b, found)]


def _compared(a: Row, b: Row, margin: float) -> Compared:
    ratio = ratio_interval(a.samples_s, b.samples_s)
    if ratio is not None:
        return Compared(a, b, ratio, verdict(ratio, margin))
    if a.status == b.status == "ok" and a.kind == "error":
        return Compared(a, b, None, "SAME")
    if a.status == b.status or {a.status, b.status} & set(NO_RESULT):
        return Compared(a, b, None, "UNSURE")
    return Compared(a, b, None, "SLOWER" if a.status == "ok" else "FASTER")


def _noise(run: Run) -> Noise:
    return Noise.from_dict(run.settings.get("noise"))


def _difference_table(a: Run, b: Run) -> Table:
    keys = list(dict.fromkeys([*a.environment, *b.environment]))
    lines = [
        (key, _text(a.environment.get(key)), _text(b.environment.get(key)))
        for key in keys
        if a.environment.get(key) != b.environment.get(key)
    ]
    of_a, of_b = (f"{_noise(run).margin:.1%} ({_noise(run).cells} cells)" for run in (a, b))
    lines.append(("noise floor", of_a, of_b))
    notes = []
    if any(a.environment.get(key) != b.environment.get(key) for key in SAME_MACHINE):
        notes.append("The runs are of different machines: what differs may be theirs.")
    return Table("What differs", ("", f"A: {a.path.name}", f"B: {b.path.name}"), lines, notes)


def _verdict_table(a: Run, b: Run, found: Sequence[Compared]) -> Table:
    lines = []
    for one in found:
        if one.verdict != "SAME":
            row = one.b
            what = (row.subject, row.direction, f"{row.case} {row.dtype}".strip(), row.world, row.contender)
            lines.append((one.verdict, *what, _figure(one.a), _figure(one.b), _interval(one.ratio)))
    counts = Counter(one.verdict for one in found)
    notes = [", ".join(f"{counts[name]} {name}" for name in ORDER) + "."]
    notes += [text for text in (_drift(found), _unpaired(a, b)) if text]
    notes.append("B / A: median and 95% interval; above 1, B is slower.")
    columns = ("verdict", "what", "direction", "case", "world", "contender", "A", "B", "B / A")
    return Table("A against B", columns, lines, notes)


def _drift(found: Sequence[Compared]) -> str:
    """How the machine itself changed: by contenders that are the same code in both runs."""
    theirs = [one.ratio.median for one in found if one.ratio and not is_ours(one.b.contender) and _is_same_code(one)]
    if not theirs:
        return ""
    return f"Other contenders of the same version took {statistics.median(theirs):.3f} times as long in B (median)."


def _is_same_code(one: Compared) -> bool:
    return one.a.version == one.b.version


def _unpaired(a: Run, b: Run) -> str:
    keys: list[Mapping[tuple[str, ...], Row]] = [{row.key: row for row in run.rows} for run in (a, b)]
    only_a, only_b = len(keys[0].keys() - keys[1].keys()), len(keys[1].keys() - keys[0].keys())
    return f"Not in both: {only_a} rows of A alone, {only_b} of B alone." if only_a or only_b else ""


def _figure(row: Row) -> str:
    if row.status != "ok":
        return f"{row.status}: {row.reason}"
    return "right" if row.time_p50_s is None else duration(row.time_p50_s)


def _interval(ratio: Interval | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _text(value: object) -> str:
    return "-" if value in (None, "", []) else str(value)
