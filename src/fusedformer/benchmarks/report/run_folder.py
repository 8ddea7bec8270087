"""The folder of one run: it appears whole or not at all, and rows are on disk as soon as they are measured.

results.csv    one row per figure            env.json      what it was measured on
results.json   the same and the raw samples  summary.md    the tables       plots/    PNG

Until it appears there are rows.jsonl, each row with its samples as it was measured, and run.json, how the run was
started, in place of results.json: what `read` and `RunFolder.reopened` take from a run that was killed.
"""

import contextlib
import csv
import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from fusedformer.benchmarks.report.rows import COLUMNS, Row
from fusedformer.files import atomic_write


class Fields(Protocol):
    """A row of results."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""


SCHEMA = 2  # of results.json and run.json; raised when a field changes its meaning or goes away
RUNS = Path("runs")
BENCH = "bench"
NEW = ".new"  # a file that takes the place of another when it is written


@dataclass(frozen=True)
class Run:
    """What a run of `fusedformer bench` measured, as it was read from its folder.

    Attributes:
        path: the folder.
        settings: how it was started (subjects, quick, budget_s, seed, sweep), and what holds for all of it: `peaks`,
            a list of machines.Machine as dictionaries, and `noise`, that of ours timed against ours, a verdicts.Noise
            likewise.
        environment: machine.collect() of where it ran.
        rows: as measured.
        static: rows of the static world, as dictionaries.
        is_finished: not where the run was killed or raised.
    """

    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: list[Row]
    static: list[dict[str, Any]]
    is_finished: bool


def read(path: Path) -> Run:
    """A run of `fusedformer bench`, finished or not; an unfinished one also by the name it would have had.

    Raises:
        ValueError: there is none at `path`, or it is of another version of the schema.
    """
    folder = _existing(path)
    is_finished = (folder / "results.json").exists()
    settings = json.loads((folder / ("results.json" if is_finished else "run.json")).read_text(encoding="utf-8"))
    if settings.get("schema") != SCHEMA or settings.get("command") != BENCH:
        found = f"schema {settings.get('schema')} of {settings.get('command', 'another command')!r}"
        raise ValueError(f"{path} has {found}, expected schema {SCHEMA} of {BENCH!r}")
    rows = settings.pop("rows") if is_finished else _unfinished_rows(folder)
    environment = settings.pop("environment")
    static = settings.pop("static", [])
    return Run(folder, settings, environment, [Row.from_dict(row) for row in rows], static, is_finished)


def is_run(path: Path) -> bool:
    """Whether `read` finds a run there."""
    try:
        read(path)
    except ValueError:
        return False
    return True


def _existing(path: Path) -> Path:
    """`path`, or the newest unfinished run that would have had that name."""
    folders = [path, *sorted(_partials(path), key=lambda partial: -partial.stat().st_mtime)]
    for folder in folders:
        if any((folder / name).exists() for name in ("results.json", "run.json")):
            return folder
    raise ValueError(f"{path} is no run folder: there is no results.json or run.json in it")


def _unfinished_rows(folder: Path) -> list[dict[str, Any]]:
    """All but a line that a killed run did not finish."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def default_path() -> Path:
    """runs/<UTC time> in the current folder; with -2, -3 ... where another run has that name, or is about to."""
    first = RUNS / time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    names = itertools.chain([first], (first.with_name(f"{first.name}-{number}") for number in itertools.count(2)))
    return next(path for path in names if not path.exists() and not _partials(path))


def check_free(path: Path) -> Path:
    """`path`, if a run can appear there.

    Raises:
        ValueError: something is there already, other than an empty folder, or a file stands in the way to it.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder: name a new one")
    if files := [folder for folder in path.parents if folder.exists() and not folder.is_dir()]:
        raise ValueError(f"{path} cannot be made: {files[0]} is a file")
    return path


def _take_over(source: Path, target: Path) -> None:
    """Rename the folder of a run that nobody writes to, so that no other process can take it over too.

    Raises:
        ValueError: the run is still going on.
    """
    with contextlib.ExitStack() as stack:
        if (source / "rows.jsonl").exists():
            lines = stack.enter_context((source / "rows.jsonl").open("rb"))
            try:
                fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{source} is still being written by its run") from None
        os.replace(source, target)


def _partials(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.partial-*"))


class RunFolder:
    """A context in which a run is written to the folder `partial` beside `path`, which becomes `path` at its end.

    A run that is killed or raises leaves `path` absent, and in `partial` the rows that it had measured.

    Args:
        path: where the run appears.
        columns: of results.csv, those of its rows' fields that go there.

    Raises:
        ValueError: something is at `path` already.
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = check_free(path), columns
        self.partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        self.rows: list[Any] = []  # of one class, whose fields are the columns
        self._source: Run | None = None

    @classmethod
    def reopened(cls, run: Run) -> "RunFolder":
        """The folder of a run that goes on; the rows that it holds when it is entered stay, which may be fewer."""
        name = re.sub(r"^\.(.+)\.partial-[0-9a-f]+$", r"\1", run.path.name)
        folder = cls.__new__(cls)
        folder.path, folder.columns = run.path.with_name(name), COLUMNS
        folder.partial = run.path.with_name(f".{name}.partial-{secrets.token_hex(4)}")
        folder.rows, folder._source = list(run.rows), run
        return folder

    def __enter__(self) -> "RunFolder":
        if self._source is None:
            self.partial.mkdir(parents=True)
        else:
            _take_over(self._source.path, self.partial)
        self._lines, self._csv = self._replacing("rows.jsonl"), self._replacing("results.csv")
        fcntl.flock(self._lines, fcntl.LOCK_EX)  # until it ends: nobody may take it over before
        self._writer = csv.DictWriter(self._csv, self.columns, extrasaction="ignore")
        self._writer.writeheader()
        self._write(self.rows)
        for file in (self._lines, self._csv):
            os.replace(file.name, file.name.removesuffix(NEW))
        if self._source is not None:
            self.write_settings(self._source.environment, **self._source.settings)
            (self.partial / "results.json").unlink(missing_ok=True)  # not before all of it is elsewhere too
        return self

    def _replacing(self, name: str) -> TextIO:
        return open(self.partial / f"{name}{NEW}", "w", newline="", encoding="utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._csv.close()
        self._lines.close()
        if kind is None:
            self._appear()
        elif not self.rows:
            shutil.rmtree(self.partial)

    def _appear(self) -> None:
        if (self.partial / "results.json").exists():  # which holds all of it
            for name in ("rows.jsonl", "run.json"):
                (self.partial / name).unlink(missing_ok=True)
        try:
            os.replace(self.partial, self.path)
        except OSError as error:
            raise FileExistsError(f"{self.path} was taken meanwhile: this run is in {self.partial}") from error

    @property
    def plots(self) -> Path:
        """The folder for pictures, made when it is first asked for."""
        (self.partial / "plots").mkdir(exist_ok=True)
        return self.partial / "plots"

    def add(self, row: Fields) -> None:
        """Append one row to rows.jsonl and results.csv now."""
        self.rows.append(row)
        self._write([row])

    def _write(self, rows: Sequence[Fields]) -> None:
        for row in rows:
            fields = row.to_dict()
            self._lines.write(json.dumps(fields, allow_nan=False) + "\n")
            self._writer.writerow(fields)
        self._lines.flush()
        self._csv.flush()

    def write_settings(self, environment: dict[str, Any], **run: Any) -> None:
        """Write run.json, from which a run that was killed goes on, and env.json."""
        self._write_json("run.json", {**run, "schema": SCHEMA, "environment": environment})
        self._write_json("env.json", environment)

    def write_results(self, environment: dict[str, Any], static: Sequence[dict[str, Any]], **run: Any) -> None:
        """Write results.json and env.json; `run` tells how the run was started."""
        rows = [row.to_dict() for row in self.rows]
        results = {"schema": SCHEMA, **run, "environment": environment, "rows": rows, "static": list(static)}
        self._write_json("results.json", results)
        self._write_json("env.json", environment)

    def _write_json(self, name: str, value: Any) -> None:
        with atomic_write(self.partial / name) as partial:
            partial.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")

    def write_text(self, name: str, text: str) -> None:
        """Write one more file of the run."""
        (self.partial / name).write_text(text, encoding="utf-8")
