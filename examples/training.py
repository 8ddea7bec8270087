"""The training loop of the examples: AdamW with warm-up and cosine, exact resume, a progress bar, a CSV of every step.

Source: decoupled weight decay: Loshchilov and Hutter 2019 (arXiv:1711.05101); warm-up and cosine: Radford et al. 2018
(GPT), section 4.1.
"""

import argparse
import contextlib
import csv
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import flags, positive
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from fusedformer.files import atomic_write

LOSSES, CHECKPOINT = "loss.csv", "checkpoint.pt"
WARM_UP, LAST = 0.1, 0.01  # share of the steps with a rising rate; the last rate, as a share of the highest
LARGEST_NORM = 1.0  # what gradients are clipped to
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Settings:
    """What a run consists of; one that is resumed must be of the same."""

    steps: int
    learning_rate: float
    seed: int = 0
    weight_decay: float = 0.1  # as GPT-3: Brown et al. 2020 (arXiv:2005.14165), appendix B
    accumulate: int = 1  # batches whose gradients make one step
    bf16: bool = False  # compute in bfloat16 where that is safe (autocast); weights stay float32
    compile: bool = False


class Step(NamedTuple):
    """What happened in one step: the columns of the CSV, behind its number."""

    loss: float  # nats, before the step
    learning_rate: float
    gradient_norm: float  # before clipping
    seconds: float
    held_out: float | None = None  # loss in nats, behind the step, where it was evaluated


class Evaluation(NamedTuple):
    """What to look at on the way."""

    loss: Callable[[], float]  # of text held out; draws no random number
    every: int  # steps, and behind the last
    target: float = -math.inf  # training ends where it is reached


def training_flags(description: str | None, *, name: str, steps: int) -> argparse.ArgumentParser:
    """The command line that the examples which train have in common."""
    parser = flags(description, name=name)
    parser.add_argument("--steps", type=positive, default=steps, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number")
    parser.add_argument("--accumulate", type=positive, default=1, help="batches of each step")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    parser.add_argument("--compile", action="store_true", help="compile the model by torch.compile")
    parser.add_argument("--checkpoint-every", type=positive, default=500, help="steps from one checkpoint to the next")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    return parser


def train(
    model: nn.Module,
    next_loss: Callable[[int], Tensor],
    args: argparse.Namespace,
    *,
    learning_rate: float,
    evaluation: Evaluation | None = None,
) -> list[Step]:
    """Minimise `next_loss(i)`, the loss of the i-th batch, which is to depend on i and PyTorch's generators alone.

    `args` are those of `training_flags`. A run that is resumed takes up every random number where it was left: its
    losses are, bit for bit, those of a run without a break.

    Returns:
        What happened in each step, those before the break included.

    Raises:
        FileNotFoundError: there is no checkpoint to resume from.
        ValueError: the checkpoint is of a run with other settings.
    """
    choices = {field.name for field in dataclasses.fields(Settings)} & set(vars(args))
    settings = Settings(**{name: getattr(args, name) for name in choices} | {"learning_rate": learning_rate})
    args.output_dir.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay))
    checkpoint = args.output_dir / CHECKPOINT
    done = load(checkpoint, settings, model, optimizer) if args.resume else []
    if settings.compile:
        model.compile()
    with reporting(settings.steps, len(done), Console()) as report:
        while len(done) < settings.steps:
            done.append(update(model, optimizer, next_loss, len(done), settings))
            is_last = len(done) == settings.steps
            if evaluation is not None and (is_last or len(done) % evaluation.every == 0):
                loss = evaluation.loss()
                done[-1] = done[-1]._replace(held_out=loss)
                is_last |= loss <= evaluation.target
            report(len(done), done[-1].loss)
            if is_last or len(done) % args.checkpoint_every == 0:
                save(checkpoint, settings, model, optimizer, done)
                write_csv(done, args.output_dir / LOSSES)
            if is_last:
                break
    return done


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for AdamW: the matrices of linear layers decay; norms, biases and embeddings do not.

    A matrix that is an embedding too, as a tied output head is, does not decay.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - tables
    decayed = [parameter for parameter in model.parameters() if id(parameter) in linear]
    others = [parameter for parameter in model.parameters() if id(parameter) not in linear]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def scheduled_rate(step: int, settings: Settings) -> float:
    """The learning rate of a step: up in a straight line, then down along half a cosine."""
    warm_up = math.ceil(WARM_UP * settings.steps)
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, settings.steps - warm_up)
    return settings.learning_rate * (LAST + (1 - LAST) * (1 + math.cos(math.pi * progress)) / 2)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    next_loss: Callable[[int], Tensor],
    step: int,
    settings: Settings,
) -> Step:
    """One step of the optimizer, by the mean gradient of `accumulate` batches."""
    started, rate = time.perf_counter(), scheduled_rate(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    total = 0.0
    device = next(model.parameters()).device.type
    for index in range(settings.accumulate):
        with torch.autocast(device, torch.bfloat16, enabled=settings.bf16):
            loss = next_loss(step * settings.accumulate + index) / settings.accumulate
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
    optimizer.step()
    return Step(total, rate, norm.item(), time.perf_counter() - started)


def save(
    path: Path, settings: Settings, model: nn.Module, optimizer: torch.optim.Optimizer, done: Sequence[Step]
) -> None:
    """Write all that a run depends on from here, whole or not at all."""
    state = {
        "settings": dataclasses.asdict(settings),
        "steps": [list(step) for step in done],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
    }
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def load(path: Path, settings: Settings, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Step]:
    """Put back what `save` wrote; the steps done so far."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path} to resume from")
    state = torch.load(path, map_location="cpu", weights_only=True)
    theirs, ours = state["settings"], dataclasses.asdict(settings)
    changed = [f"{name} {theirs.get(name)} there, {ours[name]} now" for name in ours if theirs.get(name) != ours[name]]
    if changed:
        raise ValueError(f"{path} is of a run with other settings: {'; '.join(changed)}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    cpu, *gpus = state["generators"]
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)
    return [Step(*step) for step in state["steps"]]


@contextlib.contextmanager
def reporting(steps: int, done: int, console: Console) -> Iterator[Report]:
    """A function to call after each step: it moves a bar on a terminal, and writes ten lines elsewhere."""
    if not console.is_terminal:
        yield line_reporter(steps, done)
        return
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=steps, completed=done, loss=math.nan)
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)


def line_reporter(steps: int, done: int) -> Report:
    started = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if step % max(1, steps // 10) == 0 or step == steps:
            elapsed = time.perf_counter() - started
            left = elapsed / (step - done) * (steps - step)
            print(f"step {step:5d}/{steps}  loss {loss:.4f}  {elapsed:4.0f} s, {left:3.0f} s left", flush=True)

    return report


def write_csv(done: Sequence[Step], path: Path) -> None:
    """One row for each step, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *Step._fields])
        writer.writerows([number, *step] for number, step in enumerate(done, start=1))
