"""`fusedformer report RUN ...`: what runs of `bench` measured, in a new folder.

report.html    all of it in one file      summary.md    the same as markdown      plots/    the pictures, PNG
"""

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fusedformer.benchmarks.harness.verdicts import Noise
from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.report import duels, html, plots, rooflines, run_folder, sweeps, tables
from fusedformer.benchmarks.report.html import Picture, Section
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import Run
from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static.row import StaticRow

TITLE = "fusedformer benchmarks"


def write(runs: Sequence[Run], output: Path) -> None:
    """Write the report of these runs; it appears whole or not at all.

    Raises:
        ValueError: something is at `output` already, or two runs have the same name.
    """
    names = [run.path.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs {', '.join(names)}: names must differ, for they tell the runs apart")
    with _new_folder(output) as folder:
        sections = [_run_section(run, folder / "plots" / (run.path.name if len(runs) > 1 else "")) for run in runs]
        common = _common_pictures(runs, folder / "plots")
        if common:
            sections.insert(0, Section("All runs", pictures=common))
        (folder / "report.html").write_text(html.render(TITLE, sections), encoding="utf-8")
        (folder / "summary.md").write_text(html.markdown(TITLE, sections, folder), encoding="utf-8")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that becomes it at the end; removed if the body raises."""
    run_folder.check_free(path)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _run_section(run: Run, folder: Path) -> Section:
    found = duels.duels(run.rows, _noise(run).margin)
    statics = [StaticRow.from_dict(row) for row in run.static]
    known = [
        duels.duel_table(found),
        tables.environment_table(run.environment),
        _peak_table(run),
        tables.noise_table(_noise(run)),
        tables.error_table(run.rows),
        *tables.time_tables(run.rows),
        tables.static_table(statics),
    ]
    title = run.path.name if run.is_finished else f"{run.path.name}: unfinished"
    return Section(title, [table for table in known if table.lines], _pictures(run, found, folder))


def _common_pictures(runs: Sequence[Run], folder: Path) -> list[Picture]:
    """What several runs swept in the same pictures, each contender with the name of its run."""
    of_run = {run.path.name: [row for row in run.rows if row.kind == "time"] for run in runs}
    times = Counter(key for rows in of_run.values() for key in sweeps.problems(rows))
    rows = [
        replace(row, contender=f"{row.contender}, {name}")
        for name, rows in of_run.items()
        for row in rows
        if times[row.subject, row.direction] > 1
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return _captioned(sweeps.draw(rows, folder), SWEEP)


SWEEP = "time, rate and memory against size; bars from the 20th to the 80th percentile"
DUELS = "ours against the best other contender: orange ours loses, purple ours wins"
ROOFLINE = "each op under the roof of the machine"
OTHERS = "errors, and what was measured at one size"


def _pictures(run: Run, found: Sequence[duels.Duel], folder: Path) -> list[Picture]:
    folder.mkdir(parents=True, exist_ok=True)
    machines = [Machine(**fields) for fields in run.settings.get("peaks") or []]
    return [
        *_captioned(duels.draw(found, folder), DUELS),
        *_captioned(sweeps.draw(run.rows, folder), SWEEP),
        *_captioned(rooflines.draw(run.rows, machines, folder / "roofline.png"), ROOFLINE),
        *_captioned(plots.draw(_of_one_size(run.rows), folder), OTHERS),
    ]


def _captioned(paths: Sequence[Path], caption: str) -> list[Picture]:
    return [Picture(path, f"{path.stem}: {caption}") for path in paths]


def _of_one_size(rows: Sequence[Row]) -> list[Row]:
    swept = sweeps.problems(rows)
    return [row for row in rows if row.kind == "error" or (row.subject, row.direction) not in swept]


def _peak_table(run: Run) -> Table:
    """What the machine reaches at most."""
    lines = []
    for fields in run.settings.get("peaks") or []:
        machine = Machine(**fields)
        rate, bandwidth = f"{machine.matrix_flops / 1e12:.3g} TFLOP/s", f"{machine.bandwidth / 1e9:.4g} GB/s"
        lines.append((machine.name, rate, bandwidth, machine.source))
    return Table("Peaks", ("machine", "products of 16 bits", "memory", "source"), lines)


def _noise(run: Run) -> Noise:
    return Noise.from_dict(run.settings.get("noise"))
