"""One figure of a profile: what it is of, its value and unit, and how it was obtained."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Literal

Obtained = Literal["measured", "modelled", "predicted", ""]
MEASURED: Final = "measured"
MODELLED: Final = "modelled"
PREDICTED: Final = "predicted"

BREAKDOWN, FIT, CROSSOVER, EXTRAPOLATE = "breakdown", "fit", "crossover", "extrapolate"
STEP = "step"
"""The component that stands for all of them."""

TIME, SHARE, FLOPS, BYTES = "time", "share of the step", "FLOPs", "bytes moved"
INTENSITY, ROOFLINE, SAVED, PEAK = "arithmetic intensity", "share of its roofline", "saved activations", "peak memory"
UNITS = {
    TIME: "s", SHARE: "1", FLOPS: "FLOP", BYTES: "B", INTENSITY: "FLOP/B", ROOFLINE: "1", SAVED: "B", PEAK: "B"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure, or the reason why there is none."""

    section: str
    model: str
    mode: str
    attention: str
    context: int = 0  # length of the sequence; 0 where the figure is a length itself, or of all
    component: str = STEP
    quantity: str
    value: float | None = None
    unit: str = ""
    obtained: Obtained = ""  # measured, modelled or predicted; nothing without a figure
    machine: str = ""  # what it is a figure of
    reason: str = ""  # why there is no figure, or what it rests on

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, in order."""
        return dataclasses.asdict(self)


COLUMNS = tuple(field.name for field in dataclasses.fields(Cell))
