"""How long it takes to judge a comparison, told from earlier ones: that cannot be stopped once it has begun."""

import time
from collections.abc import Callable, Sequence

from fusedformer.benchmarks.harness.comparison import Comparison
from fusedformer.benchmarks.harness.implementation import OURS
from fusedformer.benchmarks.harness.timing import Plan
from fusedformer.benchmarks.report.rows import Row

LONG_COMPILE = 5.0  # seconds: a first call that takes less may have done so for what is set up once


class Costs:
    """Seconds until the contenders of a comparison were ready to be timed, by subject and direction."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, float]] = {}  # work and seconds of the last
        self._compiles: dict[tuple[str, str], tuple[str, float]] = {}  # by subject and contender: case and seconds

    def noting(self, comparison: Comparison, plan: Callable[[], Plan]) -> Callable[[], Plan]:
        """`plan`, to be asked when the contenders have been judged: from now to then it took."""
        started = time.monotonic()

        def noted() -> Plan:
            if comparison.work is not None:
                key = comparison.subject, comparison.direction
                self._known[key] = comparison.work.amount, time.monotonic() - started
            return plan()

        return noted

    def expected(self, comparison: Comparison) -> float:
        """Seconds: what the last one took, as much longer as this one has more work; 0 where nothing is known."""
        amount, seconds = self._known.get((comparison.subject, comparison.direction), (0.0, 0.0))
        if comparison.work is None or not amount or comparison.work.amount <= amount:
            return 0.0
        return seconds * comparison.work.amount / amount

    def note_compiles(self, rows: Sequence[Row]) -> None:
        """Remember what took long to compile, in the case that it was last compiled for."""
        for row in rows:
            if row.compile_s is not None and row.compile_s > LONG_COMPILE:
                self._compiles[row.subject, row.contender] = f"{row.case} {row.dtype}", row.compile_s

    def too_slow(self, comparison: Comparison, share: float) -> dict[str, str]:
        """Contenders, never ours, that take more than `share` seconds to compile for this case, with the reason."""
        found = {}
        for name in comparison.contenders:
            case, seconds = self._compiles.get((comparison.subject, name), ("", 0.0))
            if name != OURS and case != f"{comparison.case} {comparison.dtype}" and seconds > share:
                found[name] = (
                    f"it took {seconds:.0f} s to compile for another case, {share:.0f} s are there for this one"
                )
        return found
