"""What of a run that goes on is kept, and whether it can go on here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import Run


def check_same(run: Run, environment: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the run was made in another environment than this one: its figures would not go together.
    """
    differing = [key for key in environment if run.environment.get(key) != environment[key]]
    if differing:
        found = "; ".join(f"{key} {run.environment.get(key)!r}, here {environment[key]!r}" for key in differing)
        raise ValueError(f"{run.path} cannot go on here, it was made with {found}")


def finished_rows(rows: Sequence[Row], contenders: Mapping[tuple[str, ...], set[str]]) -> list[Row]:
    """All but those that are to be measured again: where there was no time, or a run broke off in the middle.

    Args:
        rows: of the run so far.
        contenders: those of every comparison by its key.
    """
    unfinished = {row.comparison for row in rows if row.kind == "time" and row.status == "skipped"}
    keys = {row.key for row in rows}
    unfinished |= {key for key, names in contenders.items() if any((*key, name) not in keys for name in names)}
    errors: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind == "error":
            errors.setdefault((row.subject, row.world), []).append(row)
    broken = {key for key, group in errors.items() if not _has_all_errors(key[0], group)}
    return [row for row in rows if row.comparison not in unfinished and not _is_in(row, broken)]


def _is_in(row: Row, groups: set[tuple[str, str]]) -> bool:
    return row.kind == "error" and (row.subject, row.world) in groups


def _has_all_errors(op: str, rows: Sequence[Row]) -> bool:
    statuses = Counter(row.status for row in rows)
    if statuses["skipped"]:
        return False
    return len(rows) >= len(OPS[op].error_cases) or bool(statuses["missing"] or statuses["failed"])
