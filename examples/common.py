"""What the examples share: flags, plots, the verdict on the final figure."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fusedformer.files import atomic_write


def flags(description: str | None, *, name: str) -> argparse.ArgumentParser:
    """The command line that the examples have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--output-dir", type=Path, default=Path("runs") / name, help="folder of what it writes")
    return parser


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def plot_loss(losses: Sequence[float], path: Path, levels: Mapping[str, float] | None = None) -> None:
    """Plot the training loss, with a dashed line for each named level."""
    figure = Figure(figsize=(7, 4), layout="constrained")  # not pyplot's: it needs no screen
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label="training loss")
    for index, (label, level) in enumerate((levels or {}).items(), start=1):
        axes.axhline(level, color=f"C{index}", linestyle="--", label=f"{label}: {level:.3f}")
    axes.set(xlabel="step", ylabel="cross-entropy (nats)", title=path.parent.name)
    axes.legend()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(f"plot: {path}")


def verdict(figure: str, reached: bool) -> int:
    """Print the final figure and whether it was reached; the exit status of the example."""
    print(f"{figure}: {'reached' if reached else 'MISSED'}")
    return 0 if reached else 1
