"""The roofline of a run: each op of ours as a dot, under the peaks that were measured in the same run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from fusedformer.benchmarks.harness.comparison import OURS
from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.report.axes import COLOURS, MARKERS, WIDTH, roofs, save
from fusedformer.benchmarks.report.rows import Row

FILLS = {"forward": "full", "backward": "none"}  # of a marker, by direction; others are half full
LINE = 0.21  # inches of a line of the legend


def dots(rows: Sequence[Row]) -> list[Row]:
    """Of each op, direction and dtype the row of ours that took longest, if its FLOPs and bytes are known."""
    longest: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row.kind == "time" and row.contender == OURS and row.time_p50_s and row.flops and row.n_bytes:
            key = (row.subject, row.direction, row.dtype)
            longest[key] = max(longest.get(key, row), row, key=lambda one: one.time_p50_s or 0.0)
    return list(longest.values())


def draw(rows: Sequence[Row], machines: Sequence[Machine], path: Path) -> list[Path]:
    """Draw the dots, forward filled and backward hollow; the path, or none if there is no dot or no machine."""
    found = dots(rows)
    if not found or not machines:
        return []
    machine = machines[0]
    figure, axes = plt.subplots(figsize=(WIDTH, max(4.5, 0.9 + LINE * len(found))), layout="constrained")
    has_float8 = any(row.dtype.startswith("float8") for row in found)
    roofs(axes, machine, [_intensity(row) for row in found], with_float8=has_float8)
    subjects = list(dict.fromkeys(row.subject for row in found))
    for row in found:
        number = subjects.index(row.subject)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        rate = (row.flops or 0.0) / (row.time_p50_s or 1.0)
        axes.plot(
            [_intensity(row)],
            [rate / 1e12],
            marker,
            color=colour,
            markersize=8,
            alpha=0.8,
            fillstyle=FILLS.get(row.direction, "left"),
            linestyle="none",
            label=f"{row.subject} {row.direction} {row.dtype}: {_share(row, machine):.0%}",
        )
    axes.set_ylabel("rate (TFLOP/s)")
    axes.set_title(f"ours on {machine.name}, peaks {machine.source}; dots: {found[0].obtained}", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False, title="share of the roof", title_fontsize=8)
    return [save(figure, path)]


def _intensity(row: Row) -> float:
    return (row.flops or 0.0) / (row.n_bytes or 1.0)


def _share(row: Row, machine: Machine) -> float:
    """The least time that the units for its dtype and the memory allow, over the time."""
    least = max((row.flops or 0.0) / machine.product_flops(row.dtype), (row.n_bytes or 0.0) / machine.bandwidth)
    return least / (row.time_p50_s or 1.0)
