"""What an interval of a ratio of times says: SAME, FASTER, SLOWER or UNSURE, and how far noise alone moves one.

A difference under the margin is none worth telling; the margin is MARGIN, or what ours against ours came to in the same
run, if that is more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusedformer.benchmarks.harness.timing import Interval

Verdict = Literal["SAME", "FASTER", "SLOWER", "UNSURE"]
MARGIN = 0.02
SHARE_OF_CELLS = 0.99


def verdict(ratio: Interval, margin: float = MARGIN) -> Verdict:
    """Of the time of B over that of A, what B is beside A.

    Args:
        ratio: the median with its 95% interval.
        margin: 0.02 takes from 1 / 1.02 to 1.02 for the same.

    Returns:
        SAME where the whole interval lies within the margin, FASTER or SLOWER where all of it lies outside, UNSURE
        elsewhere.
    """
    low, high = 1 / (1 + margin), 1 + margin
    if low <= ratio.low and ratio.high <= high:
        return "SAME"
    if ratio.high < low:
        return "FASTER"
    return "SLOWER" if ratio.low > high else "UNSURE"


@dataclass(frozen=True)
class Noise:
    """What comparisons of ours with ours came to: `noise` of results.json.

    Attributes:
        cells: how many were made.
        same: how many of them were SAME.
        floor: the least margin, above 0, by which 99 of 100 of them would have been.
    """

    cells: int
    same: int
    floor: float

    @classmethod
    def of(cls, ratios: Sequence[Interval]) -> "Noise":
        """Of the ratios of ours to ours, one for each cell."""
        margins = sorted(max(ratio.high, 1 / ratio.low) - 1 for ratio in ratios)
        floor = margins[min(len(margins) - 1, int(SHARE_OF_CELLS * len(margins)))] if margins else 0.0
        return cls(len(ratios), sum(verdict(ratio) == "SAME" for ratio in ratios), floor)

    @property
    def is_low(self) -> bool:
        """Whether the timing can be trusted: 99 of 100 cells, or all of fewer, say SAME."""
        return self.same >= SHARE_OF_CELLS * self.cells

    @property
    def margin(self) -> float:
        """For `verdict`, of rows of this run."""
        return max(MARGIN, self.floor)

    @classmethod
    def from_dict(cls, fields: dict[str, Any] | None) -> "Noise":
        """As JSON holds it; of no cells where a run has not come to it."""
        return cls(**fields) if fields else cls(0, 0, 0.0)
