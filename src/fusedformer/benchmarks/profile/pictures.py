"""The pictures of a profile, as PNG: breakdown, memory, roofline, and decoding against the length of the cache.

Colours are Okabe and Ito's, which colour-blind readers tell apart; areas are hatched and series have markers besides.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a display

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.profile import cells
from fusedformer.benchmarks.profile.breakdown import ATTENTION_BACKWARD, ATTENTION_FORWARD, LINES
from fusedformer.benchmarks.profile.cells import BREAKDOWN, STEP, Cell
from fusedformer.benchmarks.profile.components import (
    ACTIVATION,
    ATTENTION_OUT,
    EMBEDDING,
    LOGITS,
    LOSS,
    MLP,
    NORMS,
    OPTIMIZER,
    OTHER,
    QKV,
    RESIDUAL,
    SOFTMAX,
)  # fmt: skip
from fusedformer.benchmarks.profile.steps import DECODE
from fusedformer.benchmarks.report.plots import COLOURS, MARKERS

WIDTH = 9.0  # inches: the width of a page
# Lines of a breakdown that are drawn as one, with colour and hatch.
AREAS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "attention forward": ((ATTENTION_FORWARD,), "#D55E00", ""),
    "attention backward": ((ATTENTION_BACKWARD,), "#E69F00", "//"),
    "softmax": ((SOFTMAX,), "#F0E442", ".."),
    "qkv and out": ((QKV, ATTENTION_OUT), "#0072B2", ""),
    "MLP": ((MLP,), "#56B4E9", "\\\\"),
    "norms, activation, residual": ((NORMS, ACTIVATION, RESIDUAL), "#009E73", ""),
    "logits and loss": ((LOGITS, LOSS), "#CC79A7", "xx"),
    "optimizer": ((OPTIMIZER,), "#999999", ""),
    "embedding, other": ((EMBEDDING, OTHER), "#000000", ""),
}
DPI = 150


def draw(found: Sequence[Cell], machine: Machine, memory: float, folder: Path) -> list[Path]:
    """Draw every picture that there are figures for; the paths of the files written."""
    broken_down = [cell for cell in found if cell.section == BREAKDOWN and cell.value is not None]
    paths = []
    for mode in dict.fromkeys(cell.mode for cell in broken_down):
        chosen = [cell for cell in broken_down if cell.mode == mode]
        pictures: dict[str, Callable[[], Figure]] = {
            f"breakdown-{mode}": lambda c=chosen: draw_breakdown(c),  # type: ignore[misc]
            f"memory-{mode}": lambda c=chosen: draw_memory(c, memory),  # type: ignore[misc]
            f"roofline-{mode}": lambda c=chosen: draw_roofline(c, machine),  # type: ignore[misc]
        }
        if mode == DECODE:
            pictures["decode"] = lambda c=chosen: draw_decode(c)  # type: ignore[misc]
        for name, make in pictures.items():
            paths.append(folder / f"{name}.png")
            figure = make()
            figure.savefig(paths[-1], dpi=DPI)
            plt.close(figure)
    return paths


def draw_breakdown(found: Sequence[Cell]) -> Figure:
    """Shares of the step against the context, stacked, one panel for each attention."""
    attentions = _unique(found, "attention")
    figure, panels = plt.subplots(
        1, len(attentions), figsize=(WIDTH, 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, attention in zip(panels[0], attentions, strict=True):
        shares = _series(found, attention, cells.SHARE)
        contexts = sorted(shares.get(STEP, {}))
        bottom = np.zeros(len(contexts))
        for label, (lines, colour, hatch) in AREAS.items():
            heights = np.array([sum(shares.get(line, {}).get(c, 0.0) for line in lines) for c in contexts]) * 100
            if heights.any():
                axes.fill_between(
                    contexts, bottom, bottom + heights, facecolor=colour, hatch=hatch, edgecolor="white",
                    linewidth=0.4, label=label,
                )  # fmt: skip
            bottom += heights
        _context_axis(axes, contexts)
        axes.set_xlim(contexts[0], contexts[-1])
        axes.set_ylim(0, 100)
        axes.set_title(f"{attention}: {_obtained(found, attention, cells.TIME)}", fontsize=10)
    panels[0][0].set_ylabel("share of the step's time (%)")
    _finish(figure, panels[0], _title(found))
    return figure


def draw_memory(found: Sequence[Cell], memory: float) -> Figure:
    """The peak of allocated memory against the context, with the line where it is out."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    contexts: list[int] = []
    for index, attention in enumerate(_unique(found, "attention")):
        for obtained in dict.fromkeys(c.obtained for c in found if c.quantity == cells.PEAK):
            peaks = {
                c.context: (c.value or 0.0) / 2**30
                for c in found
                if (c.attention, c.quantity, c.obtained) == (attention, cells.PEAK, obtained)
            }
            if peaks:
                contexts = sorted({*contexts, *peaks})
                # Two that need the same lie on each other: the later ones are smaller, and dashed.
                axes.plot(
                    list(peaks), list(peaks.values()), MARKERS[index], color=COLOURS[index],
                    label=f"{attention}: {obtained}",
                    markersize=9 - 2 * index, linestyle=("-", "--", ":")[index % 3],
                )  # fmt: skip
    axes.axhline(memory / 2**30, color="black", linestyle="--", label=f"out of memory: {memory / 2**30:.4g} GiB")
    _context_axis(axes, contexts)
    _plain_log_axis(axes)
    axes.set_ylabel("peak of allocated memory (GiB)")
    _finish(figure, [axes], _title(found))
    return figure


def draw_roofline(found: Sequence[Cell], machine: Machine) -> Figure:
    """Each component as a dot under the machine's roof, at the longest context, one panel for each attention."""
    attentions = _unique(found, "attention")
    figure, panels = plt.subplots(
        1, len(attentions), figsize=(WIDTH, 4.8), sharey=True, sharex=True, squeeze=False, layout="constrained"
    )
    for axes, attention in zip(panels[0], attentions, strict=True):
        longest = max(c.context for c in found if c.attention == attention)
        intensity, flops, seconds = (
            _series(found, attention, quantity) for quantity in (cells.INTENSITY, cells.FLOPS, cells.TIME)
        )
        dots: list[float] = []
        for label, (lines, colour, _) in AREAS.items():
            for number, line in enumerate(line for line in lines if seconds.get(line, {}).get(longest)):
                x = intensity[line][longest]
                rate = flops[line][longest] / seconds[line][longest] / 1e12
                if x and rate:
                    dots.append(x)
                    marker = MARKERS[(list(AREAS).index(label) + number) % len(MARKERS)]
                    # Smaller and smaller, so that one that lies on another does not hide it.
                    axes.plot([x], [rate], marker, color=colour, markersize=13 - 0.7 * len(dots), label=line,
                              markeredgecolor="black", markeredgewidth=0.5)  # fmt: skip
        _roofs(axes, machine, [0.1, *dots, 1e5])
        axes.set_xlabel("arithmetic intensity (FLOP/B)")
        axes.set_title(
            f"{attention}, {_short(longest)}: {_obtained(found, attention, cells.TIME, longest)}", fontsize=10
        )
    panels[0][0].set_ylabel("rate (TFLOP/s)")
    _finish(figure, panels[0], f"{_title(found)}; {machine.name}, {machine.source}")
    return figure


def draw_decode(found: Sequence[Cell]) -> Figure:
    """The time of one token against the length of the cache."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    contexts: list[int] = []
    for index, attention in enumerate(_unique(found, "attention")):
        times = _series(found, attention, cells.TIME).get(STEP, {})
        contexts = sorted({*contexts, *times})
        axes.plot(
            list(times), [1e3 * t for t in times.values()], MARKERS[index], color=COLOURS[index],
            linestyle=("-", "--", ":")[index % 3], markersize=9 - 2 * index,
            label=f"{attention}: {_obtained(found, attention, cells.TIME)}",
        )  # fmt: skip
    _context_axis(axes, contexts)
    axes.set_xlabel("keys and values in the cache (tokens)")
    _plain_log_axis(axes)
    axes.set_ylabel("time of one token (ms)")
    _finish(figure, [axes], f"{_title(found)}; {found[0].machine}")
    return figure


def _roofs(axes: Axes, machine: Machine, intensities: Sequence[float]) -> None:
    x = np.array([min(intensities) / 2, *np.geomspace(min(intensities), max(intensities), 200), 2 * max(intensities)])
    styles = (("matrix units", machine.matrix_flops, "-"), ("other units", machine.vector_flops, "--"))
    for label, peak, style in styles:
        axes.plot(x, np.minimum(peak, x * machine.bandwidth) / 1e12, style, color="black", label=f"roof: {label}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _context_axis(axes: Axes, contexts: Sequence[int]) -> None:
    """The context on a scale of doublings, at most seven of them labelled."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(contexts[:: -(-len(contexts) // 7) or 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(round(value))))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("context (tokens)")
    axes.grid(alpha=0.3)


def _plain_log_axis(axes: Axes) -> None:
    """Values on a scale of powers of ten, written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"))


def _finish(figure: Figure, panels: Sequence[Axes], title: str) -> None:
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)


def _series(found: Sequence[Cell], attention: str, quantity: str) -> dict[str, dict[int, float]]:
    """Values by component and context."""
    series: dict[str, dict[int, float]] = {}
    for cell in found:
        if (cell.attention, cell.quantity) == (attention, quantity) and cell.value is not None:
            series.setdefault(cell.component, {})[cell.context] = cell.value
    return {name: series[name] for name in (*LINES, STEP) if name in series}


def _obtained(found: Sequence[Cell], attention: str, quantity: str, context: int | None = None) -> str:
    ways = [
        c.obtained
        for c in found
        if (c.attention, c.quantity) == (attention, quantity) and c.obtained and context in (None, c.context)
    ]
    return ", ".join(dict.fromkeys(ways))


def _title(found: Sequence[Cell]) -> str:
    return f"{found[0].model}, {found[0].mode}"


def _unique(found: Sequence[Cell], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(cell, name) for cell in found))


def _short(context: int) -> str:
    """A context as the command line takes it: 4k, 1m."""
    for unit, scale in (("m", 2**20), ("k", 2**10)):
        if context >= scale:
            return f"{context / scale:.3g}{unit}"
    return str(context)
