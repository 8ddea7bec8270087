"""Run folders: whole or not at all, rows on disk at once, and a schema that readers can rely on."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusedformer.benchmarks.report import run_folder
from fusedformer.benchmarks.report.rows import COLUMNS, Row
from fusedformer.benchmarks.report.run_folder import RunFolder

ROW = Row(
    kind="time",
    subject="softmax",
    world="gpu",
    direction="forward",
    contender="ours",
    time_p50_s=1e-3,
    ratio=1.5,
    samples_s=(1e-3, 2e-3),
)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    with RunFolder(path) as folder:
        folder.add(ROW)
        folder.write_results({"cpu": "x"}, [{"op": "softmax"}], seed=3)
        folder.write_text("summary.md", "# run\n")
        (folder.plots / "a.png").touch()
        assert not path.exists()
    assert sorted(file.name for file in path.iterdir()) == [
        "env.json",
        "plots",
        "results.csv",
        "results.json",
        "summary.md",
    ]
    assert [folder.name for folder in path.parent.iterdir()] == ["first"]


def test_results_json_has_a_version_and_every_row_with_its_samples(tmp_path: Path) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    with RunFolder(tmp_path / "run") as folder:
        folder.add(ROW)
        folder.write_results({"cpu": "x"}, [{"op": "softmax"}], seed=3)
    results = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=refuse)
    assert results.keys() == {"schema", "seed", "environment", "rows", "static"}
    assert (results["schema"], results["seed"]) == (run_folder.SCHEMA, 3)
    assert [Row.from_dict(row) for row in results["rows"]] == [ROW]
    assert json.loads((tmp_path / "run" / "env.json").read_text()) == results["environment"] == {"cpu": "x"}


def test_results_csv_has_a_row_for_each_figure_without_samples(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.add(ROW)
    (row,) = read_csv(tmp_path / "run" / "results.csv")
    assert tuple(row) == COLUMNS
    assert (row["obtained"], row["ratio"], row["error_ratio"]) == ("measured", "1.5", "")


def test_a_run_that_raises_leaves_its_rows_aside(tmp_path: Path) -> None:
    def fails_after_a_row() -> None:
        with RunFolder(tmp_path / "run") as folder:
            folder.add(ROW)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_after_a_row()
    assert not (tmp_path / "run").exists()
    assert len(read_csv(tmp_path / ".run.partial" / "results.csv")) == 1


def test_a_run_that_raises_before_its_first_row_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunFolder(tmp_path / "run"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = f"""if True:
        import sys, time
        from pathlib import Path
        from fusedformer.benchmarks.report.rows import Row
        from fusedformer.benchmarks.report.run_folder import RunFolder
        with RunFolder(Path(sys.argv[1])) as folder:
            folder.add({ROW!r})
            print("measured", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "measured\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "run").exists()
    assert len(read_csv(tmp_path / ".run.partial" / "results.csv")) == 1
    with RunFolder(tmp_path / "run"):
        pass
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]


def test_a_run_does_not_replace_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.csv").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(ValueError, match=f"{name} exists and is not an empty folder"):
            RunFolder(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with RunFolder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty" / "results.csv").exists()


def test_write_whole_leaves_the_old_file_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    run_folder.write_whole(path, "old")

    def full(*_: Any, **__: Any) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        run_folder.write_whole(path, "new")
    assert path.read_text() == "old"
