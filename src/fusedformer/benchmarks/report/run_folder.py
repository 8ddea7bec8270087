"""The folder of one run: it appears whole or not at all, and rows are on disk as soon as they are measured.

results.csv    one row per figure            env.json      what it was measured on
results.json   the same and the raw samples  summary.md    the tables       plots/    PNG
"""

import csv
import itertools
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from fusedformer.benchmarks.report.rows import COLUMNS


class Fields(Protocol):
    """A row of results."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""


SCHEMA = 1  # of results.json; raised when a field changes its meaning or goes away
RUNS = Path("runs")


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

    def __enter__(self) -> "RunFolder":
        self.partial.mkdir(parents=True)
        self._csv = open(self.partial / "results.csv", "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._csv, self.columns, extrasaction="ignore")
        self._writer.writeheader()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._csv.close()
        if kind is None:
            self._appear()
        elif not self.rows:
            shutil.rmtree(self.partial)

    def _appear(self) -> None:
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
        """Append one row to results.csv now."""
        self.rows.append(row)
        self._writer.writerow(row.to_dict())
        self._csv.flush()

    def write_results(self, environment: dict[str, Any], static: Sequence[dict[str, Any]], **run: Any) -> None:
        """Write results.json and env.json; `run` tells how the run was started."""
        rows = [row.to_dict() for row in self.rows]
        results = {"schema": SCHEMA, **run, "environment": environment, "rows": rows, "static": list(static)}
        self.write_text("results.json", json.dumps(results, indent=1, allow_nan=False))
        self.write_text("env.json", json.dumps(environment, indent=1))

    def write_text(self, name: str, text: str) -> None:
        """Write one more file of the run."""
        (self.partial / name).write_text(text, encoding="utf-8")
