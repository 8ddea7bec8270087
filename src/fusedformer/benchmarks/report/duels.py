"""Ours against the best of the others, problem by problem: a table and a map, losses shown as plainly as wins.

The ratio is the other's time over ours, measured side by side; a win or a loss is a ratio whose whole interval lies
beyond the noise of the run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from fusedformer.benchmarks.harness.implementation import OURS, is_ours
from fusedformer.benchmarks.harness.timing import Interval
from fusedformer.benchmarks.harness.verdicts import verdict
from fusedformer.benchmarks.report import tables
from fusedformer.benchmarks.report.axes import WIDTH, save, short
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.sweeps import AXES, NOT_TRIED, grouped, problem_key, swept
from fusedformer.benchmarks.report.tables import Table

Outcome = Literal["loss", "even", "win", "unsure"]
OUTCOMES: dict[str, Outcome] = {"SLOWER": "win", "FASTER": "loss", "SAME": "even", "UNSURE": "unsure"}
LOST = 0.0  # the ratio of a duel in which ours has no time
MOST_LINES = 24  # of one map
FULL_COLOUR = 1.5  # times as fast, or as slow
LABEL_WIDTH = 6.0  # inches: that of the labels of lines and the bar of colours; a column takes one more
EVEN_COLOUR = (0.95, 0.95, 0.95, 1.0)
COLOUR_MAP = "PuOr"  # orange for losses, purple for wins: colour-blind readers tell them apart


@dataclass(frozen=True)
class Duel:
    """One problem: our row, and the fastest right one of the others.

    Attributes:
        ours: our row.
        best: theirs.
        ratio: of best's time to ours; LOST where ours has no time.
        outcome: what that is.
        size: the name of the size by which the map goes from left to right; empty if the problem has none.
        line: of the map, where it belongs.
    """

    ours: Row
    best: Row
    ratio: float
    outcome: Outcome
    size: str
    line: tuple[str, str]


def duels(rows: Sequence[Row], margin: float) -> list[Duel]:
    """Of every comparison in which ours was not just left out, and a contender that is not ours has a time.

    Args:
        rows: of one run.
        margin: a ratio this far from 1 is noise.
    """
    others: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.kind == "time" and not is_ours(row.contender) and row.time_p50_s is not None:
            others.setdefault(row.comparison, []).append(row)
    ours = [row for row in rows if row.kind == "time" and row.contender == OURS]
    found = []
    for (subject, direction), group in grouped(ours, lambda row: (row.subject, row.direction)).items():
        size = swept(group) or next((name for name in AXES if name in group[0].sizes), "")
        key = problem_key(group, size)
        for row in group:
            if row.status not in NOT_TRIED and row.comparison in others:
                best = min(others[row.comparison], key=lambda other: other.time_p50_s or math.inf)
                label = " ".join(filter(None, key(row))) if row.sizes else f"{row.case} {row.dtype} {row.world}"
                found.append(Duel(row, best, *_outcome(row, best, margin), size, (f"{subject} {direction}", label)))
    return found


def duel_table(found: Sequence[Duel]) -> Table:
    """Losses first, the worst at the top."""
    lines = [
        (
            duel.outcome,
            f"{duel.ours.subject} {duel.ours.direction}",
            f"{duel.ours.case} {duel.ours.dtype}",
            _time(duel.ours),
            duel.best.contender,
            _time(duel.best),
            tables.ratio(duel.best) if duel.ratio != LOST else "-",
            duel.ours.obtained,
        )
        for duel in sorted(found, key=lambda duel: duel.ratio)
    ]
    counts = {name: sum(duel.outcome == name for duel in found) for name in ("loss", "even", "unsure", "win")}
    columns = ("", "what", "case", "ours", "the best other", "its time", "its time / ours", "obtained")
    note = ", ".join(f"{name}: {count}" for name, count in counts.items())
    return Table("Ours against the best other contender", columns, lines, (f"{note}. A ratio above 1 is a win.",))


def draw(found: Sequence[Duel], folder: Path) -> list[Path]:
    """Maps of so many lines at most, those with sizes of one name together; the paths of the files written."""
    paths = []
    for size in (*AXES, ""):
        chosen = [duel for duel in found if duel.size == size]
        lines = list(dict.fromkeys(duel.line for duel in chosen))
        for start in range(0, len(lines), MOST_LINES):
            part = f"-{start // MOST_LINES + 1}" if len(lines) > MOST_LINES else ""
            shown = lines[start : start + MOST_LINES]
            path = folder / f"duels{f'-{size}' if size else ''}{part}.png"
            paths.append(_draw_map([duel for duel in chosen if duel.line in shown], shown, size, path))
    return paths


def _draw_map(found: Sequence[Duel], lines: Sequence[tuple[str, str]], size: str, path: Path) -> Path:
    columns = sorted({duel.ours.sizes.get(size, 0) for duel in found})
    width = min(WIDTH, LABEL_WIDTH + len(columns))
    figure, axes = plt.subplots(figsize=(width, 1.5 + 0.42 * len(lines)), layout="constrained")
    colours = plt.get_cmap(COLOUR_MAP)
    limit = math.log2(FULL_COLOUR)
    norm = TwoSlopeNorm(0.0, -limit, limit)
    for duel in found:
        place = columns.index(duel.ours.sizes.get(size, 0)), lines.index(duel.line)
        is_known = duel.outcome in ("win", "loss")
        _draw_cell(axes, duel, place, colours(norm(_level(duel))) if is_known else EVEN_COLOUR)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks(range(len(lines)), ["\n".join(line) for line in lines], fontsize=7)
    axes.set_xticks(range(len(columns)), [short(column) for column in columns] if size else [""], fontsize=8)
    axes.set_xlabel(AXES.get(size, "one size"))
    axes.tick_params(length=0)
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axes, shrink=min(1.0, 4 / len(lines)), pad=0.01)
    bar.set_ticks([-limit, 0, limit], labels=[f"{FULL_COLOUR:g} times slower", "even", f"{FULL_COLOUR:g} times faster"])
    bar.ax.tick_params(labelsize=7)
    ways = ", ".join(dict.fromkeys(duel.ours.obtained for duel in found))
    figure.suptitle(
        f"time of the best other contender / ours ({ways})\nbelow 1 ours loses; ~ and grey: within noise, or unsure",
        fontsize=9,
    )
    return save(figure, path)


def _draw_cell(axes: Axes, duel: Duel, place: tuple[int, int], colour: tuple[float, ...]) -> None:
    x, y = place
    axes.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
    is_dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5
    mark = "" if duel.outcome in ("win", "loss") else "~"
    text = f"{mark}{duel.ratio:.2f}" if duel.ratio != LOST else duel.ours.status
    ink = "white" if is_dark else "black"
    weight = "bold" if duel.outcome == "loss" else "normal"
    axes.text(x, y - 0.13, text, ha="center", va="center", fontsize=8, color=ink, weight=weight)
    axes.text(x, y + 0.24, duel.best.contender, ha="center", va="center", fontsize=5.5, color=ink)


def _level(duel: Duel) -> float:
    """Where on the scale of colours: doublings, at most one either way."""
    limit = math.log2(FULL_COLOUR)
    return -limit if duel.ratio == LOST else max(-limit, min(limit, math.log2(duel.ratio)))


def _outcome(ours: Row, best: Row, margin: float) -> tuple[float, Outcome]:
    if ours.time_p50_s is None or best.time_p50_s is None:
        return LOST, "loss"
    if best.ratio is None or best.ratio_low is None or best.ratio_high is None:
        return best.time_p50_s / ours.time_p50_s, "unsure"
    return best.ratio, OUTCOMES[verdict(Interval(best.ratio_low, best.ratio, best.ratio_high), margin)]


def _time(row: Row) -> str:
    return row.status if row.time_p50_s is None else tables.duration(row.time_p50_s)
