"""What a person sees of a run: tables, and what is being done now; plain lines where no terminal is."""

import os
import time
from types import TracebackType

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from fusedformer.benchmarks.report.tables import Table

TENTHS = 10
FILE_WIDTH = 160  # characters of a line where the output is no terminal, whose width could be asked


class Console:
    """A context in which `step` tells what is being done: on a terminal one changing line, elsewhere one line each.

    Steps of a known number have a bar on a terminal, with the time that the rest will take if it goes on like this.
    """

    def __init__(self) -> None:
        self._rich = RichConsole(highlight=False)
        if not self._rich.is_terminal and "COLUMNS" not in os.environ:
            self._rich = RichConsole(highlight=False, width=FILE_WIDTH)
        self._status = self._rich.status("starting")
        self._progress: Progress | None = None
        self._started = time.monotonic()

    def __enter__(self) -> "Console":
        if self._rich.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._status.stop()
        self._end_progress()

    def step(self, text: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done from now on; it is step `done` of `total`, counted from 0, if that is given."""
        seconds = time.monotonic() - self._started
        if not self._rich.is_terminal:
            count = f"{done + 1} of {total}: " if total else ""
            self._rich.print(escape(f"{seconds:4.0f} s  {count}{text}"))
        elif total:
            self._show_progress(text, done, total)
        else:
            self._end_progress()
            self._status.update(escape(f"{seconds:4.0f} s  {text}"))
            self._status.start()

    def count(self, text: str, done: int, total: int) -> None:
        """Say how many of `total` alike things are done, from 1 on: elsewhere than on a terminal at each tenth only."""
        if self._rich.is_terminal or done * TENTHS // total > (done - 1) * TENTHS // total:
            self.step(f"{text} {done} of {total}")

    def _show_progress(self, text: str, done: int, total: int) -> None:
        if self._progress is None:
            self._status.stop()  # a terminal has one such line at a time
            self._progress = Progress(
                TimeElapsedColumn(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.description}"), console=self._rich, transient=True, speed_estimate_period=600,
            )  # fmt: skip
            self._progress.add_task("")
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], description=escape(text), completed=done, total=total)

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._rich.print(escape(text), soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a table that stays; of one without lines, its notes."""
        rich_table = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
        for column in table.columns:
            rich_table.add_column(escape(column), overflow="fold")
        for line in table.lines:
            rich_table.add_row(*(escape(cell) for cell in line))
        if table.lines:
            self._rich.print(rich_table)
        for note in table.notes:
            self.line(note)
