"""What the examples share: flags, the training loop with its progress, plots, the verdict on the final figure."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fusedformer.files import atomic_write


def flags(description: str | None, *, name: str, steps: int | None = None) -> argparse.ArgumentParser:
    """The command line that the examples have in common; those that train, for `steps` steps, have two flags more."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--output-dir", type=Path, default=Path("runs") / name, help="folder of the plot")
    if steps is not None:
        parser.add_argument("--steps", type=positive, default=steps, help="optimizer steps")
        parser.add_argument("--seed", type=int, default=0, help="seed of every random number")
    return parser


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def train(model: nn.Module, next_loss: Callable[[], Tensor], *, steps: int, learning_rate: float) -> list[float]:
    """Minimise `next_loss()`, the loss of a new batch each time, by AdamW on a one-cycle schedule.

    Returns:
        The loss of each step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps + 1)
    losses: list[float] = []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        loss = next_loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % max(1, steps // 10) == 0 or step == steps:
            elapsed = time.perf_counter() - started
            left = elapsed / step * (steps - step)
            print(f"step {step:5d}/{steps}  loss {losses[-1]:.4f}  {elapsed:4.0f} s, {left:3.0f} s left", flush=True)
    return losses


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
