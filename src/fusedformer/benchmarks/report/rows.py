"""One figure of a run: a row of results.csv, and of results.json together with its raw samples."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# missing: this machine has not what it takes (a package, a GPU, a compiler); skipped: there was no time for it.
Status = Literal["ok", "wrong", "failed", "out of memory", "missing", "skipped"]
OUT_OF_MEMORY: Status = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The error of one contender against float64, or its time; a row without a figure carries the reason.

    Rows of one `comparison` were measured side by side: value i of their `samples_s` belongs to the same round. Ratios
    of times are the contender's time over ours, round by round: above 1, ours is faster.
    """

    kind: Literal["error", "time"]
    subject: str  # the op or the model
    case: str = ""  # its sizes and options, in words
    sizes: Mapping[str, int] = field(default_factory=dict)  # by dimension letter or name
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments, such as causal
    dtype: str = ""
    world: str  # reference, emulated or gpu
    direction: str  # forward, backward, forward + backward, training step, prefill, decode, writing
    contender: str
    version: str = ""  # of the contender: its package and version
    obtained: Literal["measured", "modelled", "predicted"] = "measured"
    status: Status = "ok"
    reason: str = ""  # why the status is not "ok"
    error_ratio: float | None = None  # largest error over its budget: right at 1 or below
    worst_tensor: str = ""  # the output or gradient of that error
    clock: str = ""  # what the time was taken with: wall, events, graph
    time_p20_s: float | None = None  # of a GPU with its L2 cache cold
    time_p50_s: float | None = None
    time_p80_s: float | None = None
    warm_p50_s: float | None = None  # the same inputs again and again: what they leave in the caches helps
    host_p50_s: float | None = None  # what a call keeps the host busy, whatever the device does
    compile_s: float | None = None  # what the first call took longer than the second
    ratio: float | None = None
    ratio_low: float | None = None  # the 95% interval of the ratio
    ratio_high: float | None = None
    flops: float | None = None  # what a call has to compute at least
    n_bytes: float | None = None  # what a call has to move at least
    rate: float | None = None
    rate_unit: str = ""  # GB/s or TFLOP/s
    peak_share: float | None = None  # of the rate that a large product or copy reached in this run
    datasheet_share: float | None = None  # of the rate of the device's data sheet
    peak_memory_bytes: float | None = None  # allocated during a call, beyond what was there before it
    sm_clock_mhz: float | None = None  # median after a batch of rounds
    power_w: float | None = None  # largest after a batch of rounds
    repeated_batches: int = 0  # of rounds, because the GPU throttled in them
    rounds: int = 0
    samples_s: tuple[float, ...] = ()  # seconds of one call, one value a round

    @property
    def comparison(self) -> tuple[str, ...]:
        """What this row shares with those that it was measured beside."""
        return (self.kind, self.subject, self.case, self.dtype, self.world, self.direction)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this row from every other of its run, and is the same in another run."""
        return (*self.comparison, self.contender)

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, in order: what JSON holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Row":
        """The row that `to_dict` described, also after a trip through JSON."""
        return cls(**{**fields, "samples_s": tuple(fields["samples_s"])})


# What a cell of a table cannot hold is in results.json only.
COLUMNS = tuple(field.name for field in dataclasses.fields(Row) if field.name not in ("sizes", "options", "samples_s"))

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+")


def without_folders(text: str) -> str:
    """`text` with absolute paths cut to the names of their files: results are read on other machines."""
    return _FOLDERS.sub("", text)
