"""How the commands read what they are called with: a ValueError about it ends them as typer does, with 2."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import typer

from fusedformer.benchmarks import static_baseline
from fusedformer.benchmarks.ops import SUBJECTS
from fusedformer.benchmarks.options import one_of, some_of
from fusedformer.benchmarks.profile.subjects import find_subject
from fusedformer.benchmarks.report import run_folder
from fusedformer.benchmarks.static.collect import ARCHS, known_ops
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.benchmarks.sweep import parse_sweep
from fusedformer.benchmarks.verify.subjects import SUBJECTS as REAL_MODELS

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # that models are verified in


def parse_archs(text: str) -> list[int]:
    """GPU architectures such as 80,90, in that order, each once.

    Raises:
        ValueError: one of them is not known.
    """
    return list(map(int, some_of("architecture", text, list(map(str, ARCHS)))))


def parse_static_op(name: str) -> str:
    """The name of an op that has device code.

    Raises:
        ValueError: there is no such op.
    """
    return one_of("op with device code", name, known_ops())


def parse_subject(name: str) -> str:
    """The name of an op or a model.

    Raises:
        ValueError: there is no such op or model.
    """
    return one_of("op or model", name, SUBJECTS)


def parse_bench_argument(text: str) -> str:
    """The name of an op or a model, or a term of a sweep such as D=64,128.

    Raises:
        ValueError: there is no such op or model, or the term is wrong.
    """
    return str(parse_sweep(text)) if "=" in text else parse_subject(text)


def parse_sweep_terms(text: str) -> str:
    """Terms of a sweep.

    Raises:
        ValueError: one of them is wrong.
    """
    return str(parse_sweep(text))


def parse_run(text: str) -> Any:
    """A run of `bench` by its folder.

    Raises:
        ValueError: there is none, or it is of another version.
    """
    return run_folder.read(Path(text))


def parse_real_model(name: str) -> str:
    """The name of a real model.

    Raises:
        ValueError: there is no such model.
    """
    return one_of("model", name, REAL_MODELS)


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of this name.

    Raises:
        ValueError: models are not verified in it.
    """
    return DTYPES[one_of("dtype", name, DTYPES)]


def parse_model(text: str) -> Any:
    """A model to profile, by name or as FILE.py:FUNCTION.

    Raises:
        ValueError: there is no such model, file or function.
    """
    return find_subject(text)


def parse_baseline(text: str) -> list[StaticRow]:
    """The rows of a baseline of the static world, from a file.

    Raises:
        ValueError: there is no such file, or it holds no such rows.
    """
    return static_baseline.load(Path(text))


def free_path(text: str) -> Path:
    """A path at which a folder can appear.

    Raises:
        ValueError: something is there, or stands in the way.
    """
    return run_folder.check_free(Path(text))


def file_path(text: str) -> Path:
    """A path at which a file can be written.

    Raises:
        ValueError: it is a folder, or in none.
    """
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder")
    return path


def option(parse: Callable[[str], Any], metavar: str, text: str, *, name: str = "", default: str = "") -> Any:
    """An option of typer's, by `name` or its parameter's; `default` is what its help shows for None."""
    return typer.Option(*filter(None, [name]), **_settings(parse, metavar, text, default))


def argument(parse: Callable[[str], Any], metavar: str, text: str, *, default: str = "") -> Any:
    """An argument of typer's; `default` is what its help shows for None."""
    return typer.Argument(**_settings(parse, metavar, text, default))


def _settings(parse: Callable[[str], Any], metavar: str, text: str, default: str) -> dict[str, Any]:
    return {"parser": _refusing(parse), "metavar": metavar, "help": text, "show_default": default or True}


def _refusing(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for typer, which shows what a BadParameter says and exits with 2, but not what a ValueError says."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    parsed.__name__ = parse.__name__.removeprefix("parse_")  # typer shows it as the value's kind
    return parsed


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A ValueError of what was asked for as typer shows it."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
