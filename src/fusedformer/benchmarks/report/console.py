"""What a person sees of a run: tables, and what is being done now; plain lines where no terminal is."""

import os
import time
from types import TracebackType

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table as RichTable

from fusedformer.benchmarks.report.tables import Table

FILE_WIDTH = 160  # characters of a line where the output is no terminal, whose width could be asked


class Console:
    """A context in which `step` tells what is being done: on a terminal one changing line, elsewhere one line each."""

    def __init__(self) -> None:
        self._rich = RichConsole(highlight=False)
        if not self._rich.is_terminal and "COLUMNS" not in os.environ:
            self._rich = RichConsole(highlight=False, width=FILE_WIDTH)
        self._status = self._rich.status("starting")
        self._started = time.monotonic()

    def __enter__(self) -> "Console":
        if self._rich.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        """Say what is being done from now on."""
        line = escape(f"{time.monotonic() - self._started:4.0f} s  {text}")
        if self._rich.is_terminal:
            self._status.update(line)
        else:
            self._rich.print(line)

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
