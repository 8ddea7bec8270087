"""One figure of a run: a row of results.csv, and of results.json together with its raw samples."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "wrong", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The error of one contender against float64, or its time; a row without a figure carries the reason.

    Ratios of times are the contender's time over ours, round by round: above 1, ours is faster.
    """

    kind: Literal["error", "time"]
    subject: str  # the op or the model
    case: str = ""  # its sizes and options
    dtype: str = ""
    world: str  # reference, emulated or gpu
    direction: str  # forward, backward, forward + backward, training step
    contender: str
    obtained: Literal["measured", "modelled", "predicted"] = "measured"
    status: Status = "ok"
    reason: str = ""  # why the status is not "ok"
    error_ratio: float | None = None  # largest error over its budget: right at 1 or below
    worst_tensor: str = ""  # the output or gradient of that error
    time_p20_s: float | None = None
    time_p50_s: float | None = None
    time_p80_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None  # the 95% interval of the ratio
    ratio_high: float | None = None
    rate: float | None = None
    rate_unit: str = ""  # GB/s or TFLOP/s
    rounds: int = 0
    samples_s: tuple[float, ...] = ()  # seconds of one call, one value a round

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, in order: what JSON holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Row":
        """The row that `to_dict` described, also after a trip through JSON."""
        return cls(**{**fields, "samples_s": tuple(fields["samples_s"])})


# The raw samples are in results.json only.
COLUMNS = tuple(field.name for field in dataclasses.fields(Row) if field.name != "samples_s")

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+")


def without_folders(text: str) -> str:
    """`text` with absolute paths cut to the names of their files: results are read on other machines."""
    return _FOLDERS.sub("", text)
