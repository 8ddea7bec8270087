"""The pictures of a run, as PNG: errors, time ratios, and the rates of the kernels."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from fusedformer.benchmarks.report.axes import COLOURS, MARKERS, WIDTH, save
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.tables import rate_scale

CROWDED = 5.0  # ratio of the ends of an axis of ratios, past which not every tenth has room

Draw = Callable[[Axes, Sequence[Row]], None]


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw every picture that these rows have figures for; the paths of the files written."""
    pictures: dict[str, tuple[Draw, list[Row]]] = {}

    def add(row: Row, name: str, fill: Draw) -> None:
        pictures.setdefault(name, (fill, []))[1].append(row)

    for row in rows:
        if row.kind == "error" and row.status not in ("skipped", "missing"):
            add(row, "errors", draw_errors)
        if row.ratio is not None:
            add(row, f"ratios-{row.subject}", draw_ratios)
        if row.rate is not None:
            add(row, f"rates-{row.subject}", draw_rates)
    return [_save(folder / f"{name}.png", chosen, fill) for name, (fill, chosen) in pictures.items()]


def draw_errors(axes: Axes, rows: Sequence[Row]) -> None:
    """The error ratio of every case, a series for each world; wrong and failed cases at the right edge."""

    def line(row: Row) -> str:
        return f"{row.subject} {row.case} {row.dtype}"

    lines = _unique(map(line, rows))
    right = [row for row in rows if row.status == "ok"]
    edge = 1.1  # right ones end at 1
    ratios = [row.error_ratio or 0.0 for row in right]
    _series(axes, [line(row) for row in right], [row.world for row in right], ratios, lines)
    for status in ("wrong", "failed"):
        places = [lines.index(line(row)) for row in rows if row.status == status]
        if places:
            marker = {"wrong": "x", "failed": "X"}[status]
            axes.plot([edge] * len(places), places, marker, color="red", label=status, clip_on=False)
    axes.axvline(1.0, color="black", linestyle="--", label="budget")
    axes.set_xlim(0, edge)
    axes.set_xlabel("largest error against float64, over its budget\n(right at 1 or below); measured")


def draw_ratios(axes: Axes, rows: Sequence[Row]) -> None:
    """Their time over ours with its 95% interval, a line for each comparison."""
    intervals = [(row.ratio_low or 0.0, row.ratio_high or 0.0) for row in rows]
    contenders = [f"{row.contender} / ours" for row in rows]
    _series(axes, [_comparison(row) for row in rows], contenders, [row.ratio or 1.0 for row in rows], None, intervals)
    axes.axvline(1.0, color="black", linestyle="--", label="equal")
    axes.set_xscale("log")  # twice as fast and half as fast lie equally far from 1
    for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_format(FormatStrFormatter("%g"))
    low, high = axes.get_xlim()
    if high / low > CROWDED:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("their time / our time, with 95% interval\n(above 1: ours is faster); measured")


def draw_rates(axes: Axes, rows: Sequence[Row]) -> None:
    """The rate that every contender reached, a line for each problem; all in one unit."""
    scale, unit = rate_scale(max(row.rate or 0.0 for row in rows), rows[0].rate_unit)
    rates = [scale * (row.rate or 0.0) for row in rows]
    _series(axes, [_comparison(row) for row in rows], [row.contender for row in rows], rates)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"rate ({unit}); measured")


def _series(
    axes: Axes,
    lines: Sequence[str],
    series: Sequence[str],
    values: Sequence[float],
    places: Sequence[str] | None = None,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> None:
    """One marker per value: its line of `places` from top to bottom, its series by colour, marker and a small shift."""
    places, names = places or _unique(lines), _unique(series)
    for index, name in enumerate(names):
        chosen = [i for i in range(len(values)) if series[i] == name]
        shift = 0.4 * ((index + 0.5) / len(names) - 0.5)
        heights = [places.index(lines[i]) + shift for i in chosen]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot([values[i] for i in chosen], heights, marker, color=colour, label=name)
        if intervals is not None:
            lows, highs = zip(*(intervals[i] for i in chosen), strict=True)
            axes.hlines(heights, lows, highs, color=colour)
    axes.set_yticks(range(len(places)), places)
    axes.set_ylim(len(places) - 0.5, -0.5)


def _comparison(row: Row) -> str:
    return f"{row.subject} {row.direction}\n{row.case} {row.dtype}"


def _save(path: Path, rows: Sequence[Row], fill: Draw) -> Path:
    figure, axes = plt.subplots(layout="constrained")
    fill(axes, rows)
    figure.set_size_inches(WIDTH, 1.5 + 0.45 * len(axes.get_yticks()))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return save(figure, path)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
