"""The pictures of a profile, as PNG: breakdown, memory, roofline, and decoding against the length of the cache.

Colours are Okabe and Ito's, which colour-blind readers tell apart; areas are hatched and series have markers besides.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from fusedformer.benchmarks.report.axes import (
    COLOURS,
    MARKERS,
    WIDTH,
    legend,
    plain_log_axis,
    roofs,
    save,
    short,
    size_axis,
)

CONTEXT = "context (tokens)"
BAR = 1.2  # from its middle to its end, on the scale of contexts
VISIBLE = 0.5  # percent of the step, the least that is seen in a stack
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
            paths.append(save(make(), folder / f"{name}.png"))
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
        # A single context is a bar around it.
        across = contexts if len(contexts) > 1 else [contexts[0] / BAR, contexts[0] * BAR]
        bottom = np.zeros(len(across))
        for label, (lines, colour, hatch) in AREAS.items():
            heights = (
                np.broadcast_to(
                    [sum(shares.get(line, {}).get(c, 0.0) for line in lines) for c in contexts], bottom.shape
                )
                * 100
            )
            if heights.max(initial=0.0) >= VISIBLE:
                axes.fill_between(
                    across, bottom, bottom + heights, facecolor=colour, hatch=hatch, edgecolor="white",
                    linewidth=0.4, label=label,
                )  # fmt: skip
            bottom += heights
        size_axis(axes, contexts, CONTEXT)
        axes.set_xlim(across[0], across[-1])
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
    size_axis(axes, contexts, CONTEXT)
    plain_log_axis(axes)
    axes.set_ylabel("peak of allocated memory (GiB)")
    _finish(figure, [axes], _title(found))
    return figure


def draw_roofline(found: Sequence[Cell], machine: Machine) -> Figure:
    """Each component as a dot under the machine's roof, at the longest context, one panel for each attention."""
    attentions = _unique(found, "attention")
    figure, panels = plt.subplots(
        1, len(attentions), figsize=(WIDTH, 4.8), sharey=True, sharex=True, squeeze=False, layout="constrained"
    )
    longest = {name: max(c.context for c in found if c.attention == name) for name in attentions}
    dots = {name: _dots(found, name, longest[name]) for name in attentions}
    intensities = [x for known in dots.values() for x, _ in known.values()]
    for axes, attention in zip(panels[0], attentions, strict=True):
        roofs(axes, machine, intensities)
        components = [(line, colour) for lines, colour, _ in AREAS.values() for line in lines]
        for number, (line, colour) in enumerate(components):
            if line in dots[attention]:
                # Seen through, for one may lie on another.
                x, rate = dots[attention][line]
                axes.plot([x], [rate], MARKERS[number % len(MARKERS)], color=colour, alpha=0.65, markersize=9,
                          label=line, markeredgecolor="black")  # fmt: skip
        obtained = _obtained(found, attention, cells.TIME, longest[attention])
        axes.set_title(f"{attention}, {short(longest[attention])}: {obtained}", fontsize=10)
    panels[0][0].set_ylabel("rate (TFLOP/s)")
    _finish(figure, panels[0], f"{_title(found)}; {machine.name}, {machine.source}")
    return figure


def _dots(found: Sequence[Cell], attention: str, context: int) -> dict[str, tuple[float, float]]:
    """By component, its arithmetic intensity and its rate in TFLOP/s; those that have both."""
    intensity, flops, seconds = (
        _series(found, attention, quantity) for quantity in (cells.INTENSITY, cells.FLOPS, cells.TIME)
    )
    dots = {}
    for line, known in seconds.items():
        if line != STEP and known.get(context) and intensity[line][context] and flops[line][context]:
            dots[line] = (intensity[line][context], flops[line][context] / known[context] / 1e12)
    return dots


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
    size_axis(axes, contexts, "keys and values in the cache (tokens)")
    plain_log_axis(axes)
    axes.set_ylabel("time of one token (ms)")
    _finish(figure, [axes], f"{_title(found)}; {found[0].machine}")
    return figure


def _finish(figure: Figure, panels: Sequence[Axes], title: str) -> None:
    legend(figure, panels)
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
