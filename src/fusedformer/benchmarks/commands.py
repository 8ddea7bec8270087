"""The commands of `fusedformer`: what they take, and what they exit with.

Exit status: 0 if all is well; 1 if a result of ours is wrong, or worse than the one it is compared with; 2 if the
command was called wrongly; 3 if `static` could not compile everything, or `verify` not find the weights of a model.
"""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fusedformer.benchmarks import bench as bench_run
from fusedformer.benchmarks import compare as comparing
from fusedformer.benchmarks import occupancy, static_baseline
from fusedformer.benchmarks.arguments import (
    argument,
    file_path,
    free_path,
    option,
    parse_archs,
    parse_baseline,
    parse_bench_argument,
    parse_dtype,
    parse_model,
    parse_real_model,
    parse_run,
    parse_static_op,
    parse_sweep_terms,
    refusals,
)
from fusedformer.benchmarks.options import parse_duration, parse_seed
from fusedformer.benchmarks.profile import options as profile_options
from fusedformer.benchmarks.profile.contenders import CONTENDERS
from fusedformer.benchmarks.profile.steps import MODES
from fusedformer.benchmarks.report import machine, run_folder, tables
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.static import cache
from fusedformer.benchmarks.static import collect as static_world
from fusedformer.benchmarks.static.row import StaticRow, not_compiled
from fusedformer.benchmarks.static_hopper import collect as hopper_world
from fusedformer.benchmarks.static_hopper.model import ARCH as HOPPER
from fusedformer.benchmarks.sweep import parse_sweep
from fusedformer.benchmarks.verify import run as verify_run
from fusedformer.benchmarks.verify.subjects import SUBJECTS as REAL_MODELS
from fusedformer.files import atomic_write

app = typer.Typer(
    help="Is it installed right, is it correct, and how fast is it?",
    add_completion=False,
    pretty_exceptions_enable=False,
)
ALL_MODES, ALL_ATTENTIONS = ",".join(MODES), ",".join(CONTENDERS)
QUICK_BUDGET_S, BUDGET_S = 140.0, 480.0
NewFolder = Annotated[Path | None, option(free_path, "DIR", "The folder, a new one.", default="runs/<time>")]
ALL_ARCHS = ",".join(map(str, static_world.ARCHS))


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
        argument(parse_bench_argument, "OP", "Ops and models by name; more terms of a sweep.", default="all"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="At most 3 minutes on two cores, with the static table.")
    ] = False,
    sweep: Annotated[
        str | None,
        option(
            parse_sweep_terms,
            "TERM",
            "Sizes, options, dtype: S=512:128k:x2 D=64,128 causal=0,1 dtype=bf16, or rows=4096 N=1k,4k.",
            default="each op's own cases",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        option(parse_duration, "TIME", "For all of it, such as 480s or 8m.", default="480s, quick: 140s"),
    ] = None,
    output: NewFolder = None,
    resume: Annotated[
        Any,
        option(parse_run, "RUN", "Measure what this run was killed before or had no time for; with --budget only."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Time ours against ours: 99 of 100 cells have to say SAME.")
    ] = False,
    seed: Annotated[Any, option(parse_seed, "N", "Of all random inputs and weights.")] = "0",
) -> None:
    """Measure errors in every world, and times against other implementations; write a run folder."""
    terms = ([sweep] if sweep else []) + [name for name in subjects or () if "=" in name]
    names = [name for name in subjects or () if "=" not in name]
    if resume is not None and (terms or names or quick or output or self_test or seed):
        raise typer.BadParameter("a run goes on as it was started: give --budget only", param_hint="--resume")
    with refusals():
        options = bench_run.Options(
            output=output or run_folder.default_path(),
            subjects=names,
            quick=quick,
            budget_s=budget or (QUICK_BUDGET_S if quick else BUDGET_S),
            seed=seed,
            sweep=parse_sweep(" ".join(terms)) if terms else None,
            self_test=self_test,
        )
        if resume is not None:
            options = bench_run.Options.of(resume, budget or BUDGET_S)
        task = bench_run.Task.of(options, resume)
    with Console() as console:
        is_right = bench_run.run(task, console)
    raise typer.Exit(0 if is_right else 1)


@app.command()
def compare(
    a: Annotated[Any, argument(parse_run, "RUN_A", "The folder of a run before.")],
    b: Annotated[Any, argument(parse_run, "RUN_B", "The folder of a run after.")],
) -> None:
    """Tell of each row whether B is the SAME, FASTER, SLOWER or UNSURE; exit with 1 if any is SLOWER."""
    with refusals():
        found = comparing.compare(a, b)
    with Console() as console:
        for table in comparing.tables(a, b, found):
            console.table(table)
    raise typer.Exit(1 if any(one.verdict == "SLOWER" for one in found) else 0)


@app.command()
def report(
    runs: Annotated[list[str] | None, argument(parse_run, "RUN", "Folders of runs of `bench`.", default="none")] = None,
    output: NewFolder = None,
    readme: Annotated[
        bool,
        typer.Option("--readme", help="Write the newest results/<GPU>/<date> of this checkout to its README instead."),
    ] = False,
) -> None:
    """Write what runs measured as one HTML file, as markdown, and as pictures."""
    if find_spec("matplotlib") is None:
        raise typer.BadParameter("needs matplotlib: pip install 'fusedformer[bench]'", param_hint="report")
    if bool(runs) == readme or (readme and output):
        raise typer.BadParameter("takes folders of runs, or --readme alone", param_hint="report")
    from fusedformer.benchmarks.report import document, readme_figures

    if readme:
        with Console() as console, refusals():
            console.line("README.md: written anew" if readme_figures.update() else "README.md: up to date")
        return
    assert runs  # checked above
    folder = output or run_folder.default_path()
    with Console() as console:
        console.step(f"drawing {len(runs)} runs")
        with refusals():
            document.write(runs, folder)  # type: ignore[arg-type]  # typer parses each into a Run
        console.line(f"Report: {folder / 'report.html'}")


@app.command()
def static(
    arch: Annotated[Any, option(parse_archs, "ARCHS", "GPU architectures, such as 80,90.")] = ALL_ARCHS,
    op: Annotated[
        list[str] | None,
        option(parse_static_op, "NAME", "An op with device code, such as gelu.", name="--op", default="all"),
    ] = None,
    json_path: Annotated[Path | None, option(file_path, "FILE", "Write the rows to this file.", name="--json")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what compiled to results/: after a change of a kernel.")
    ] = False,
    baseline: Annotated[
        Any,
        option(
            parse_baseline, "FILE", "What --json wrote before, or the folder results: fail if any variant is worse."
        ),
    ] = None,
) -> None:
    """Compile every kernel variant ahead of time, and print what each needs and whether that is right."""
    is_part = op is not None or tuple(arch) != static_world.ARCHS
    if record and (is_part or not cache.RECORD.parents[1].joinpath("csrc").is_dir()):
        raise typer.BadParameter("takes a checkout, all architectures and all ops", param_hint="--record")
    ops = static_world.known_ops() if op is None else tuple(dict.fromkeys(op))
    with Console() as console:
        progress = partial(console.count, "compiled")
        rows: list[StaticRow] = static_world.collect(arch, ops, progress=progress, record=record)
        if HOPPER in arch and "attention" in ops:
            rows += hopper_world.collect(progress=progress, record=record)
        console.table(tables.static_table(rows))
        if (times := tables.row_times_table(rows)).lines:
            console.table(times)
        changes = [] if baseline is None else static_baseline.changes(rows, baseline)
        if baseline is not None:
            console.table(static_baseline.table(changes))
    if json_path is not None:
        with atomic_write(json_path) as unfinished:
            unfinished.write_text(json.dumps(occupancy.described(rows), indent=1))
    if any(row.problems for row in rows) or any(change.worse for change in changes):
        raise typer.Exit(1)
    raise typer.Exit(3 if not_compiled(rows) else 0)


@app.command()
def profile(
    model: Annotated[
        Any,
        option(
            parse_model,
            "MODEL",
            "gpt2, llama-8b, vit-l, whisper, or FILE.py:FUNCTION of a context: a model, or (module, inputs).",
        ),
    ] = "llama-8b",
    context: Annotated[
        Any, option(profile_options.parse_contexts, "S", "Lengths, such as 1k:1m:x2 or 4k,8k.")
    ] = "1k:1m:x2",
    mode: Annotated[Any, option(profile_options.parse_modes, "MODE", "Of train, prefill, decode.")] = ALL_MODES,
    attention: Annotated[
        Any, option(profile_options.parse_attentions, "NAME", "Of ours, sdpa (PyTorch's), math.")
    ] = ALL_ATTENTIONS,
    memory: Annotated[
        float | None,
        option(
            profile_options.parse_memory,
            "SIZE",
            "That a step may take, such as 141GiB.",
            default="the GPU's, or an H200's",
        ),
    ] = None,
    measure_upto: Annotated[
        int | None,
        option(
            profile_options.parse_length,
            "S",
            "The longest context to measure on this machine; longer ones are predicted.",
            default="all with a GPU, else none",
        ),
    ] = None,
    output: NewFolder = None,
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
    budget: Annotated[Any, option(parse_duration, "TIME", "To compile, check and time in.")] = "120s",
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
    with Console() as console:
        tune_run.run(task, tune_run.Gpu.current(), jobs, budget, console)


@app.command()
def verify(
    models: Annotated[
        list[str] | None,
        option(parse_real_model, "MODEL", f"{', '.join(REAL_MODELS)}.", name="--model", default="all"),
    ] = None,
    dtype: Annotated[Any, option(parse_dtype, "DTYPE", "Of every model: float32 or bfloat16.")] = "float32",
    output: NewFolder = None,
) -> None:
    """Run models on real input, kernels on and off, beside public ones; time them, and draw what they attend to.

    Four have pretrained weights, and compute and write beside Hugging Face's and timm's; a small GPT over characters
    trains beside plain PyTorch. timm serves without torchvision: pip install --no-deps timm.
    """
    with Console() as console:
        status = verify_run.run(models or list(REAL_MODELS), output or run_folder.default_path(), console, dtype)
    raise typer.Exit(status)
