"""`fusedformer report --readme`: the figures of README.md, from the newest results/<GPU>/<date> of a checkout.

One line for each op, forward and backward, in the order of their worth: of its first case that ours and another
contender were timed in. Losses are lines like any other. Between the two markers nothing is written by hand.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusedformer.benchmarks.harness.op import BOTH
from fusedformer.benchmarks.harness.verdicts import Noise
from fusedformer.benchmarks.ops import TIMED_OPS
from fusedformer.benchmarks.report import duels, run_folder, tables
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import Run
from fusedformer.files import atomic_write

ROOT = Path(__file__).resolve().parents[4]
README = "README.md"
BEGIN, END = "<!-- begin of `fusedformer report --readme` -->", "<!-- end of `fusedformer report --readme` -->"
# Folders of runs in one of `make gpu`, and what tells their ops apart; a run that was stopped is read as well.
RUNS = {"bench": "", "bench-fp8": ", with FUSEDFORMER_HOPPER=1"}
NOTHING = (
    "Nothing has been measured on a GPU yet: every rate and time of one that is stated here is predicted, from\n"
    "machine code and data sheets. `make gpu` measures them, and `fusedformer report --readme` writes them here."
)
COLUMNS = ("op", "shape", "ours", "best other contender", "its time / ours", "of peak")
_DAY = re.compile(r"(\d{4}-\d{2}-\d{2})(?:-(\d+))?")


def update(root: Path = ROOT) -> bool:
    """Write the figures of the newest results in `root` to its README; whether that changed it.

    Raises:
        ValueError: there is no README with the two markers, BEGIN before END, each once.
    """
    path = root / README
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) != 2:
        raise ValueError(f"{path} has not the lines {BEGIN!r} and {END!r}, each once: nowhere to write figures to")
    changed = f"{before}{BEGIN}\n{figures(root)}\n{END}{after}"
    if changed == text:
        return False
    with atomic_write(path) as partial:
        partial.write_text(changed, encoding="utf-8")
    return True


def figures(root: Path) -> str:
    """The figures of the newest results in `root`, as markdown; a sentence where there are none."""
    folder = newest(root)
    if folder is None:
        return NOTHING
    runs = {label: run_folder.read(folder / name) for name, label in RUNS.items() if run_folder.is_run(folder / name)}
    lines = [line for label, run in runs.items() for line in _lines(run, label)]
    environment = next(iter(runs.values())).environment
    packages, gpus = environment["packages"], environment["gpus"]
    told = ", ".join(f"{name} {packages[name]}" for name in ("torch", "triton") if packages.get(name))
    names = ", ".join(dict.fromkeys(gpu["name"] for gpu in gpus)) or folder.parent.name
    head = f"Measured on {names} on {_day(folder)[0]} with {told}: `results/{folder.parent.name}/{folder.name}`."
    note = (
        "Medians, and the ratio's 95% interval: above 1, ours is faster. Of peak: of what a large matrix product or a\n"
        "large copy reached in the same run."
    )
    table = [COLUMNS, ["---"] * len(COLUMNS), *lines]
    return "\n".join([head, note, "", *(f"| {' | '.join(line)} |" for line in table)])


def newest(root: Path) -> Path | None:
    """The folder of the last day, and of its last run, in which a run of `bench` can be read; None if there is none."""
    folders = [path for path in (root / "results").glob("*/*") if path.is_dir() and _DAY.fullmatch(path.name)]
    found = [path for path in folders if any(run_folder.is_run(path / name) for name in RUNS)]
    return max(found, key=lambda path: (*_day(path), path), default=None)


def _day(folder: Path) -> tuple[str, int]:
    """The date, and which run of that day it was."""
    match = _DAY.fullmatch(folder.name)
    assert match  # `newest` has looked
    return match[1], int(match[2] or 1)


def _lines(run: Run, label: str) -> Iterator[Sequence[str]]:
    margin = Noise.from_dict(run.settings.get("noise")).margin
    measured = [row for row in run.rows if row.obtained == "measured" and row.world == "gpu"]
    seen = set()
    for duel in duels.duels(measured, margin):
        ours, best = duel.ours, duel.best
        what = f"{ours.subject} {ours.direction}"
        if ours.subject not in TIMED_OPS or ours.direction == BOTH or what in seen:
            continue
        seen.add(what)
        yield (
            what + label,
            f"{ours.case} {ours.dtype}",
            _time(ours),
            f"{best.contender}, {_time(best)}",
            tables.ratio(best) if ours.time_p50_s else "-",
            "-" if ours.peak_share is None else f"{ours.peak_share:.0%}",
        )


def _time(row: Row) -> str:
    return row.status if row.time_p50_s is None else tables.duration(row.time_p50_s)
