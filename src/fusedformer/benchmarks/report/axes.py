"""What the pictures have in common: colours and markers, axes of sizes and of powers, and the roofs of a roofline.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and every series has a marker of its own besides.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws without a display

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fusedformer.benchmarks.machines import Machine

WIDTH = 9.0  # inches: the width of a page
DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "*", "p", "h")  # 11, so that no pair comes again before 60 others
MOST_LABELS = 7  # of an axis of sizes
DECADES = 3.0  # of an axis, past which only powers of ten are labelled


def save(figure: Figure, path: Path) -> Path:
    """Write a picture; the path."""
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def short(size: float) -> str:
    """A size as the command line takes it: 4k is 4096, 1m 1024 times that."""
    for unit, scale in (("m", 2**20), ("k", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g}{unit}"
    return f"{size:g}"


def size_axis(axes: Axes, sizes: Sequence[int], label: str, most_labels: int = MOST_LABELS) -> None:
    """Sizes on a scale of doublings, at most so many of them labelled."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: -(-len(sizes) // most_labels) or 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(round(value))))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def plain_log_axis(axes: Axes) -> None:
    """Values on a scale of powers of ten, written out; between them 2 and 5, where there is room."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    is_wide = math.log10(high / low) > DECADES
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"))


def roofs(axes: Axes, machine: Machine, intensities: Iterable[float], *, with_float8: bool = False) -> None:
    """The roofline of a machine over all powers of ten with these intensities, and with its bends."""
    styles = [("matrix units", machine.matrix_flops, "-"), ("other units", machine.vector_flops, "--")]
    if with_float8 and machine.float8_flops:
        styles.append(("matrix units, float8", machine.float8_flops, ":"))
    bends = [peak / machine.bandwidth for _, peak, _ in styles]
    known = (*intensities, *bends)
    low, high = 10.0 ** math.floor(math.log10(min(known) / 2)), 10.0 ** math.ceil(math.log10(max(known) * 2))
    x = np.unique([*np.geomspace(low, high, 50), *bends])  # with the bends, which are sharp so
    for label, peak, style in styles:
        axes.plot(x, np.minimum(peak, x * machine.bandwidth) / 1e12, style, color="black", label=f"roof: {label}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("arithmetic intensity (FLOP/B)")
    axes.grid(alpha=0.3)


def legend(figure: Figure, panels: Iterable[Axes], columns: int = 4) -> None:
    """One for all panels, below them, each label once."""
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
