"""Time, rate and memory against the size that a sweep changes: one picture for each op or model and direction.

Panels side by side for one problem (dtype, options, other sizes), one line of panels below another for several. A
contender has the same colour and marker in every picture; one that has no time at a size is a cross at the top.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusedformer.benchmarks.harness.implementation import is_ours
from fusedformer.benchmarks.report.axes import COLOURS, MARKERS, WIDTH, legend, plain_log_axis, save, size_axis
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.tables import rate_scale

AXES = {  # in the order of their worth
    "S": "sequence length S (tokens)",
    "N": "row length N (elements)",
    "V": "vocabulary V (logits of a row)",
}
FOLLOWERS = ("B", "M", "H", "K", "Q")  # what a sweep may change with the size that it is of, such as the batch
LINES_PER_PICTURE = 4
LINES = ("--", ":", "-.")  # of the other contenders, one for each round of the colours
NO_TIME = "no time: out of memory, wrong or failed"
NOT_TRIED = ("skipped", "missing")
TIME_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
MEMORY_UNITS = (("GiB", 2.0**-30), ("MiB", 2.0**-20), ("KiB", 2.0**-10))

Style = tuple[str, str, str]  # colour, marker, line


@dataclass(frozen=True)
class Problem:
    """What one line of panels shows: rows that differ in one size, and in who computed."""

    label: str
    axis: str
    rows: Sequence[Row]


def problems(rows: Sequence[Row]) -> dict[tuple[str, str], list[Problem]]:
    """By subject and direction, every problem that was timed at two sizes or more."""
    found: dict[tuple[str, str], list[Problem]] = {}
    for key, group in grouped(rows, lambda row: (row.subject, row.direction)).items():
        timed = [row for row in group if row.kind == "time"]
        axis = swept(timed)
        if axis is None:
            continue
        split = grouped([row for row in timed if axis in row.sizes], problem_key(timed, axis))
        several = [
            Problem(" ".join(filter(None, label)), axis, chosen)
            for label, chosen in split.items()
            if len({row.sizes[axis] for row in chosen if row.time_p50_s}) > 1
        ]
        if several:
            found[str(key[0]), str(key[1])] = several
    return found


def swept(rows: Iterable[Row]) -> str | None:
    """The size that takes the most values among these rows; None if all of them take one."""
    values = {name: {row.sizes[name] for row in rows if name in row.sizes} for name in AXES}
    name = max(values, key=lambda name: len(values[name]))
    return name if len(values[name]) > 1 else None


def problem_key(rows: Sequence[Row], axis: str) -> Callable[[Row], tuple[str, ...]]:
    """What tells problems apart, in words: dtype, options, and every size but `axis` and those that follow from it."""
    sizes = [name for name in dict.fromkeys(name for row in rows for name in row.sizes) if name != axis]
    for follower in FOLLOWERS:
        if follower in sizes:
            fewer = [name for name in sizes if name != follower]
            if _is_unique(rows, axis, fewer):
                sizes = fewer
    return lambda row: _label(row, sizes)


def _is_unique(rows: Sequence[Row], axis: str, sizes: Sequence[str]) -> bool:
    """Whether no contender has two rows of the same problem and size."""
    places = [(row.contender, row.sizes.get(axis), *_label(row, sizes)) for row in rows]
    return len(places) == len(set(places))


def styles(rows: Iterable[Row]) -> dict[str, Style]:
    """By contender, ours first: a colour, which ours has for itself, a marker, and a line, solid for ours alone."""
    ours, *colours = COLOURS
    names = sorted({row.contender for row in rows}, key=lambda name: (not is_ours(name), name))
    return {
        name: (ours, MARKERS[i % len(MARKERS)], "-")
        if is_ours(name)
        else (colours[i % len(colours)], MARKERS[i % len(MARKERS)], LINES[i // len(colours) % len(LINES)])
        for i, name in enumerate(names)
    }


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw every sweep; the paths of the files written."""
    known = styles(rows)
    paths = []
    for (subject, direction), several in problems(rows).items():
        for start in range(0, len(several), LINES_PER_PICTURE):
            part = f"-{start // LINES_PER_PICTURE + 1}" if len(several) > LINES_PER_PICTURE else ""
            name = f"sweep-{subject}-{direction}{part}".replace(" ", "-").replace("+", "and")
            figure = draw_problems(several[start : start + LINES_PER_PICTURE], known, f"{subject}, {direction}")
            paths.append(save(figure, folder / f"{name}.png"))
    return paths


def draw_problems(several: Sequence[Problem], known: Mapping[str, Style], title: str) -> Figure:
    """One line of panels for each problem."""
    rows = [row for problem in several for row in problem.rows]
    panels: list[Callable[[Axes, Problem, Mapping[str, Style]], None]] = [draw_time]
    panels += [draw_rate] * any(row.rate is not None for row in rows)
    panels += [draw_memory] * any(row.peak_memory_bytes for row in rows)
    figure, grid = plt.subplots(
        len(several),
        len(panels),
        figsize=(WIDTH, 0.9 + 2.5 * len(several)),
        squeeze=False,
        layout="constrained",
    )
    for line, problem in zip(grid, several, strict=True):
        for axes, fill in zip(line, panels, strict=True):
            fill(axes, problem, known)
        line[0].set_title(problem.label, fontsize=9, loc="left")
    ways = ", ".join(dict.fromkeys(row.obtained for row in rows if row.time_p50_s))
    figure.suptitle(f"{title}; {ways}", fontsize=11)
    legend(figure, grid.flat)
    return figure


def draw_time(axes: Axes, problem: Problem, known: Mapping[str, Style]) -> None:
    """The median of the time of a call, from the 20th to the 80th percentile."""
    unit, scale = _unit(TIME_UNITS, [row.time_p50_s for row in problem.rows])
    for name, rows in _contenders(problem):
        timed = [row for row in rows if row.time_p50_s]
        sizes = [row.sizes[problem.axis] for row in timed]
        _line(axes, sizes, [scale * (row.time_p50_s or 0.0) for row in timed], known[name], name)
        lows, highs = ([scale * (value or 0.0) for value in values] for values in _percentiles(timed))
        axes.vlines(sizes, lows, highs, color=known[name][0])
        lost = [row.sizes[problem.axis] for row in rows if row.status not in ("ok", *NOT_TRIED)]
        if lost:
            axes.plot(lost, [0.96] * len(lost), "X", color=known[name][0], transform=axes.get_xaxis_transform(),
                      clip_on=False, zorder=4)  # fmt: skip
            axes.plot([], [], "X", color="grey", label=NO_TIME)
    _size_axis(axes, problem)
    plain_log_axis(axes)
    axes.set_ylabel(f"time of a call ({unit})", fontsize=9)


def draw_rate(axes: Axes, problem: Problem, known: Mapping[str, Style]) -> None:
    """FLOPs or bytes of the problem over the time."""
    known_rates = [(row.rate, row.rate_unit) for row in problem.rows if row.rate is not None]
    scale, unit = rate_scale(*max(known_rates))
    for name, rows in _contenders(problem):
        timed = [row for row in rows if row.rate is not None]
        values = [scale * (row.rate or 0.0) for row in timed]
        _line(axes, [row.sizes[problem.axis] for row in timed], values, known[name], name)
    _size_axis(axes, problem)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"rate ({unit})", fontsize=9)


def draw_memory(axes: Axes, problem: Problem, known: Mapping[str, Style]) -> None:
    """The peak of what a call allocates."""
    unit, scale = _unit(MEMORY_UNITS, [row.peak_memory_bytes for row in problem.rows])
    for name, rows in _contenders(problem):
        told = [row for row in rows if row.peak_memory_bytes]
        peaks = [scale * (row.peak_memory_bytes or 0.0) for row in told]
        _line(axes, [row.sizes[problem.axis] for row in told], peaks, known[name], name)
    _size_axis(axes, problem)
    plain_log_axis(axes)
    axes.set_ylabel(f"peak of memory ({unit})", fontsize=9)


def _line(axes: Axes, sizes: Sequence[int], values: Sequence[float], style: Style, name: str) -> None:
    if not sizes:
        return
    colour, marker, line = style
    width, order = (1.8, 3) if is_ours(name) else (1.0, 2)  # ours lies on top
    axes.plot(
        sizes, values, marker, color=colour, linestyle=line, label=name, markersize=5, linewidth=width, zorder=order
    )


def _size_axis(axes: Axes, problem: Problem) -> None:
    sizes = sorted({row.sizes[problem.axis] for row in problem.rows})
    size_axis(axes, sizes, AXES[problem.axis], most_labels=5)
    axes.xaxis.label.set_fontsize(8)
    axes.tick_params(axis="y", labelsize=8)


def _contenders(problem: Problem) -> list[tuple[str, list[Row]]]:
    """Rows by contender, ours first and each from the smallest size to the largest."""
    names = sorted(styles(problem.rows), key=lambda name: not is_ours(name))
    by_size = sorted(problem.rows, key=lambda row: row.sizes[problem.axis])
    return [(name, [row for row in by_size if row.contender == name]) for name in names]


def _percentiles(rows: Sequence[Row]) -> tuple[list[float | None], list[float | None]]:
    return [row.time_p20_s for row in rows], [row.time_p80_s for row in rows]


def _unit(units: Sequence[tuple[str, float]], values: Iterable[float | None]) -> tuple[str, float]:
    """The largest unit in which the median of the values is at least 1."""
    ordered = sorted(value for value in values if value)
    median = ordered[len(ordered) // 2] if ordered else 1.0
    return next(((unit, scale) for unit, scale in units if median * scale >= 1), units[-1])


def _label(row: Row, sizes: Sequence[str]) -> tuple[str, ...]:
    told = [f"{name}={row.sizes[name]}" for name in sizes if name in row.sizes]
    return (" ".join([*told, *(f"{name}={value}" for name, value in row.options.items())]), row.dtype, row.world)


def grouped(rows: Iterable[Row], key: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by what `key` says of them, in the order in which it says so first."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
