"""`fusedformer static --baseline FILE`: what has become worse or better than the rows of a file, figure by figure.

The file is what `--json` wrote, or the folder of a checkout's records, results/. Figures are compared by what they
cost a launch: registers by the warps that they leave room for, shared memory by the blocks, matrix instructions by
their generation. Equal sources and compilers give equal rows, so any change is one of a kernel or of a compiler.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static.model import programs_per_sm
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.benchmarks.static_hopper.row import HopperRow

RATE_TOLERANCE = 0.005  # of a predicted rate, which is rounded
# Of matrix instructions: Ampere's, and each later GPU's own; with Q, of 8 bits.
_GENERATIONS = {"HMMA": 1, "HGMMA": 2, "QGMMA": 2, "UTCHMMA": 2}

Figure = Callable[[StaticRow], float | None]
Key = tuple[str, str, str, int]


def _warps(row: StaticRow) -> float | None:
    """That an SM has registers for; None where the programs that it holds are known."""
    return None if row.programs else programs_per_sm(row.arch, 1, max(1, row.registers), 0)


def _blocks(row: StaticRow) -> float | None:
    """Of one warp, that an SM has shared memory for; None where the programs that it holds are known."""
    return None if row.programs else programs_per_sm(row.arch, 1, 1, row.shared_bytes)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 3) if whole else None


def _generation(row: StaticRow) -> float:
    return max((_GENERATIONS[name] for name in row.matrix), default=0)


LOWER_IS_BETTER: dict[str, Figure] = {
    "gates failed": lambda row: len(row.problems),
    "bytes spilled": lambda row: row.spill_bytes,
    "bytes of stack": lambda row: row.stack_bytes,
    "local accesses": lambda row: row.local_accesses,
    "offsets of 32 bits": lambda row: row.narrow_offsets,
    "masks in the steady loop": lambda row: row.steady_masks,
    "instructions an element": lambda row: row.instructions_per_element,
}
HIGHER_IS_BETTER: dict[str, Figure] = {
    "programs an SM holds": lambda row: row.programs or None,
    "warps its registers leave room for": _warps,
    "blocks its shared memory leaves room for": _blocks,
    "generation of matrix instructions": _generation,
    "share of 128-bit loads": lambda row: _share(row.global_loads_128, row.global_loads),
    "share of 128-bit stores": lambda row: _share(row.global_stores_128, row.global_stores),
    "predicted TFLOP/s": lambda row: row.predicted_tflops or None,
}


@dataclass(frozen=True)
class Change:
    """How one variant differs from the baseline: each entry names a figure, with the value then and now."""

    variant: str
    worse: tuple[str, ...] = ()
    news: tuple[str, ...] = ()  # what is better, or that the variant is new or gone


def load(path: Path) -> list[StaticRow]:
    """The rows of a baseline: a file, or all records of a folder. Of Gluon kernels those of the Triton that is here.

    Raises:
        ValueError: there is no such file, or it holds no rows of the static world.
    """
    try:
        files = sorted(path.glob("static*.json")) if path.is_dir() else [path]
        found = chain.from_iterable(_entries(json.loads(file.read_bytes())) for file in files)
        rows = [(HopperRow if "waits" in fields else StaticRow).from_dict(fields) for fields in found]
        rows = [row for row in rows if not isinstance(row, HopperRow) or row.triton == _triton()]
    except OSError as error:
        raise ValueError(f"cannot read the baseline {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is no baseline: write one with `fusedformer static --json {path}`") from None
    if not rows:
        raise ValueError(f"the baseline {path} is empty")
    return rows


def _entries(content: Any) -> list[dict[str, Any]]:
    """Rows, out of the lists and dictionaries that records keep them in; occupancy follows from the rest of a row."""
    if isinstance(content, dict) and "kernel" not in content:
        return list(chain.from_iterable(map(_entries, content.values())))
    rows = [content] if isinstance(content, dict) else content
    return [{name: value for name, value in fields.items() if name != "occupancy"} for fields in rows]


def _triton() -> str:
    return version("triton") if find_spec("triton") else ""


def changes(rows: Sequence[StaticRow], baseline: Sequence[StaticRow]) -> list[Change]:
    """Every variant that differs from the baseline in some figure, is new, or is gone.

    What could not be compiled here is neither: its own verdict says so.
    """
    then = {_key(row): row for row in baseline if row.compiled}
    now = {_key(row): row for row in rows if row.compiled}
    missing = {(row.op, row.arch) for row in rows if not row.compiled}
    whole = {(row.op, row.arch) for row in rows} - missing
    found = [_change(row, then[key]) for key, row in now.items() if key in then]
    found += [Change(_name(row), news=("is new",)) for key, row in now.items() if key not in then]
    gone = [row for key, row in then.items() if key not in now and (row.op, row.arch) in whole]
    found += [Change(_name(row), news=("is gone",)) for row in gone]
    return [change for change in found if change.worse or change.news]


def table(found: Sequence[Change]) -> Table:
    """The changes, the worse ones first."""
    ordered = sorted(found, key=lambda change: not change.worse)
    lines = [(change.variant, "; ".join(change.worse) or "-", "; ".join(change.news) or "-") for change in ordered]
    return Table("Against the baseline", ("variant", "worse", "better, new or gone"), lines, (_note(found),))


def _note(found: Sequence[Change]) -> str:
    worse = sum(bool(change.worse) for change in found)
    if worse:
        return f"Worse than the baseline: {worse} of the variants."
    if found:
        return "Nothing is worse. Record the change: `fusedformer static --record`, or --json to the baseline's file."
    return "Every variant is as in the baseline."


def _change(now: StaticRow, then: StaticRow) -> Change:
    worse: list[str] = []
    better: list[str] = []
    for figures, sign in ((LOWER_IS_BETTER, 1), (HIGHER_IS_BETTER, -1)):
        for name, figure in figures.items():
            before, after = figure(then), figure(now)
            if before is None or after is None or abs(after - before) <= RATE_TOLERANCE * abs(before):
                continue
            (worse if sign * (after - before) > 0 else better).append(f"{name}: {before:g} -> {after:g}")
    return Change(_name(now), tuple(worse), tuple(better))


def _key(row: StaticRow) -> Key:
    return row.op, row.kernel, row.variant, row.arch


def _name(row: StaticRow) -> str:
    return f"{row.kernel} {row.variant.strip()} sm_{row.arch}"
