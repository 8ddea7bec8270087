"""How long it takes to judge a comparison, told from smaller ones: that cannot be stopped once it has begun."""

import time
from collections.abc import Callable

from fusedformer.benchmarks.harness.comparison import Comparison
from fusedformer.benchmarks.harness.timing import Plan


class Costs:
    """Seconds until the contenders of a comparison were ready to be timed, by subject and direction."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, float]] = {}  # work and seconds of the last

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
