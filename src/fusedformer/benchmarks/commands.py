"""The commands of `fusedformer`: what they take, and what they exit with.

Exit status: 0 if all is well, 1 if a result of ours is wrong, 2 if the command was called wrongly, 3 if `static` could
not compile everything, or `verify` not find the weights of a model.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fusedformer.benchmarks import bench as bench_run
from fusedformer.benchmarks.harness.timing import CudaClock
from fusedformer.benchmarks.ops import SUBJECTS
from fusedformer.benchmarks.options import one_of, some_of
from fusedformer.benchmarks.profile import options as profile_options
from fusedformer.benchmarks.profile.contenders import CONTENDERS
from fusedformer.benchmarks.profile.steps import MODES
from fusedformer.benchmarks.profile.subjects import find_subject
from fusedformer.benchmarks.report import machine, run_folder, tables
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.static import cache
from fusedformer.benchmarks.static import collect as static_world
from fusedformer.benchmarks.static.row import StaticRow, not_compiled
from fusedformer.benchmarks.static_hopper import collect as hopper_world
from fusedformer.benchmarks.static_hopper.model import ARCH as HOPPER
from fusedformer.benchmarks.verify import run as verify_run
from fusedformer.benchmarks.verify.subjects import SUBJECTS as REAL_MODELS
from fusedformer.files import atomic_write

app = typer.Typer(
    help="Is it installed right, is it correct, and how fast is it?",
    add_completion=False,
    pretty_exceptions_enable=False,
)
T = TypeVar("T")
ALL_MODES, ALL_ATTENTIONS = ",".join(MODES), ",".join(CONTENDERS)
QUICK_BUDGET_S, BUDGET_S = 140.0, 480.0
ALL_ARCHS = ",".join(map(str, static_world.ARCHS))
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90, 480s, 8m or 1.5h.

    Raises:
        ValueError: it is not of that form, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * UNITS_S[match[2]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration: write one such as 480s, 8m or 1h")
    return seconds


def parse_archs(text: str) -> list[int]:
    """GPU architectures such as 80,90, in that order, each once.

    Raises:
        ValueError: one of them is not known.
    """
    return list(map(int, some_of("architecture", text, list(map(str, static_world.ARCHS)))))


def parse_subject(name: str) -> str:
    """The name of an op or a model.

    Raises:
        ValueError: there is no such op or model.
    """
    return one_of("op or model", name, SUBJECTS)


def parse_real_model(name: str) -> str:
    """The name of a real model.

    Raises:
        ValueError: there is no such model.
    """
    return one_of("model", name, REAL_MODELS)


def parse_seed(text: str) -> int:
    """The seed of a random number generator.

    Raises:
        ValueError: it is no integer from 0 to 2**63 - 1.
    """
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**63:
        raise ValueError(f"seed {text!r} is no integer from 0 to 2**63 - 1")
    return int(text)


def parse_model(text: str) -> Any:
    """A model to profile, by name or as FILE.py:FUNCTION.

    Raises:
        ValueError: there is no such model, file or function.
    """
    return find_subject(text)


def _free_path(text: str) -> Path:
    return run_folder.check_free(Path(text))


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder")
    return path


def _option(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for typer, which shows what a BadParameter says and exits with 2, but not what a ValueError says."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    parsed.__name__ = parse.__name__.removeprefix("parse_")  # typer shows it as the value's kind
    return parsed


@app.command()
def doctor() -> None:
    """Print what is installed here, which implementation each op uses, and why the others are not there."""
    with Console() as console:
        for table in machine.doctor():
            console.table(table)


@app.command()
def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(metavar="OP", parser=_option(parse_subject), show_default="all", help="Ops and models by name."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="At most 3 minutes on two cores, with the static table.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=_option(parse_duration),
            metavar="TIME",
            show_default="480s, quick: 140s",
            help="For all of it, such as 480s or 8m.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=_option(_free_path), metavar="DIR", show_default="runs/<time>", help="The run folder, a new one."
        ),
    ] = None,
    seed: Annotated[
        Any, typer.Option(parser=_option(parse_seed), metavar="N", help="Of all random inputs and weights.")
    ] = "0",
) -> None:
    """Measure errors in every world, and times against PyTorch; write a run folder."""
    options = bench_run.Options(
        output=output or run_folder.default_path(),
        subjects=subjects or (),
        quick=quick,
        budget_s=budget or (QUICK_BUDGET_S if quick else BUDGET_S),
        seed=seed,
    )
    with Console() as console:
        is_right = bench_run.run(options, console)
    raise typer.Exit(0 if is_right else 1)


@app.command()
def static(
    arch: Annotated[
        Any, typer.Option(parser=_option(parse_archs), help="GPU architectures, such as 80,90.")
    ] = ALL_ARCHS,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", parser=_option(_file), metavar="FILE", help="Write the rows to this file."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what compiled to results/: after a change of a kernel.")
    ] = False,
) -> None:
    """Compile every kernel variant ahead of time, and print what each needs and whether that is right."""
    if record and (not cache.RECORD.parents[1].joinpath("csrc").is_dir() or tuple(arch) != static_world.ARCHS):
        raise typer.BadParameter("takes a checkout and all architectures", param_hint="--record")
    with Console() as console:

        def progress(done: int, total: int) -> None:
            console.step(f"compiled {done} of {total}")

        rows: list[StaticRow] = static_world.collect(arch, progress=progress, record=record)
        if HOPPER in arch:
            rows += hopper_world.collect(progress=progress, record=record)
        console.table(tables.static_table(rows))
        if (times := tables.row_times_table(rows)).lines:
            console.table(times)
    if json_path is not None:
        with atomic_write(json_path) as partial:
            partial.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
    if any(row.problems for row in rows):
        raise typer.Exit(1)
    raise typer.Exit(3 if not_compiled(rows) else 0)


@app.command()
def profile(
    model: Annotated[
        Any,
        typer.Option(
            parser=_option(parse_model),
            metavar="MODEL",
            help="gpt2, llama-8b, vit-l, whisper, or FILE.py:FUNCTION of a context: a model, or (module, inputs).",
        ),
    ] = "llama-8b",
    context: Annotated[
        Any,
        typer.Option(
            parser=_option(profile_options.parse_contexts), metavar="S", help="Lengths, such as 1k:1m:x2 or 4k,8k."
        ),
    ] = "1k:1m:x2",
    mode: Annotated[
        Any,
        typer.Option(parser=_option(profile_options.parse_modes), metavar="MODE", help="Of train, prefill, decode."),
    ] = ALL_MODES,
    attention: Annotated[
        Any,
        typer.Option(
            parser=_option(profile_options.parse_attentions),
            metavar="NAME",
            help="Of ours, sdpa (PyTorch's), math.",
        ),
    ] = ALL_ATTENTIONS,
    memory: Annotated[
        float | None,
        typer.Option(
            parser=_option(profile_options.parse_memory),
            metavar="SIZE",
            show_default="the GPU's, or an H200's",
            help="That a step may take, such as 141GiB.",
        ),
    ] = None,
    measure_upto: Annotated[
        int | None,
        typer.Option(
            parser=_option(profile_options.parse_length),
            metavar="S",
            show_default="all with a GPU, else none",
            help="The longest context to measure on this machine; longer ones are predicted.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=_option(_free_path), metavar="DIR", show_default="runs/<time>", help="The run folder, a new one."
        ),
    ] = None,
) -> None:
    """Show where time and memory of a model go as its context grows: here, or on a GPU that is not here."""
    from fusedformer.benchmarks.profile import run as profile_run  # NumPy is not everywhere

    options = profile_run.Options(
        output=output or run_folder.default_path(),
        subject=model,
        contexts=context,
        modes=mode,
        attentions=attention,
        memory=memory,
        measure_upto=measure_upto,
    )
    with Console() as console:
        try:
            profile_run.run(options, console)
        except profile_run.CannotProfileError as error:
            raise typer.BadParameter(str(error), param_hint="--model") from None


@app.command()
def tune(
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="fwd, dq or dkdv.")],
    head_dim: Annotated[int, typer.Option(help="Head dimension.")] = 128,
    seqlen: Annotated[int, typer.Option(help="Queries and keys.")] = 4096,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 4,
    heads: Annotated[int, typer.Option(help="Heads.")] = 16,
    jobs: Annotated[int, typer.Option(min=1, help="Compilers at a time.")] = 8,
) -> None:
    """Measure tiles of an attention kernel in bfloat16 on the GPU that is here; print the row of the best."""
    import torch

    if not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device here to measure on", param_hint="tune")
    from fusedformer.benchmarks import tune as tune_run  # imports Triton, which is not everywhere

    try:
        task = tune_run.Task(kernel, torch.bfloat16, head_dim, seqlen, batch, heads)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    major, minor = torch.cuda.get_device_capability()
    arch, tiles = 10 * major + minor, tune_run.candidates(task.dtype.itemsize)
    with Console() as console:
        console.step(f"compiling {len(tiles)} tiles")
        refused = tune_run.refusals(task, tiles, arch, jobs)
        fitting = [tile for tile in tiles if tile not in refused]
        trials = tune_run.tune(task, fitting, torch.device("cuda"), CudaClock(), progress=console.step)
        trials += [tune_run.Trial(tile, refused=why) for tile, why in refused.items()]
        console.table(tune_run.table(trials))
        if trials[0].speedup is not None:
            console.line(tune_run.row(task, trials[0], arch, torch.cuda.get_device_name()))


@app.command()
def verify(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            parser=_option(parse_real_model),
            metavar="MODEL",
            show_default="all",
            help=", ".join(REAL_MODELS) + ".",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=_option(_free_path), metavar="DIR", show_default="runs/<time>", help="The run folder, a new one."
        ),
    ] = None,
) -> None:
    """Run pretrained models on real input, kernels on and off, beside Hugging Face's; draw what they attend to."""
    with Console() as console:
        status = verify_run.run(models or list(REAL_MODELS), output or run_folder.default_path(), console)
    raise typer.Exit(status)
