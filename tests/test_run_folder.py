"""Run folders: whole or not at all, rows on disk at once, and a schema that readers can rely on."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
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


def partial_of(folder: Path) -> Path:
    (partial,) = folder.glob(".run.partial-*")
    return partial


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
    assert len(read_csv(partial_of(tmp_path) / "results.csv")) == 1


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
    assert len(read_csv(partial_of(tmp_path) / "results.csv")) == 1
    rescued = partial_of(tmp_path)
    with RunFolder(tmp_path / "run"):
        pass
    assert {*tmp_path.iterdir()} == {tmp_path / "run", rescued}


def begun(path: Path, *rows: Row) -> RunFolder:
    """A run of `bench` that was left in the middle of its next row."""
    folder = RunFolder(path).__enter__()
    folder.write_settings({"cpu": "x"}, command="bench", seed=3)
    for row in rows:
        folder.add(row)
    folder._lines.write('{"kind": "ti')
    folder._lines.close()
    folder._csv.close()
    return folder


def test_a_run_that_was_killed_is_read_and_goes_on(tmp_path: Path) -> None:
    begun(tmp_path / "run", ROW, replace(ROW, contender="theirs"))
    run = run_folder.read(tmp_path / "run")
    assert (run.is_finished, run.settings["seed"], run.environment) == (False, 3, {"cpu": "x"})
    assert [row.contender for row in run.rows] == ["ours", "theirs"]
    with RunFolder.reopened(run) as folder:
        folder.add(replace(ROW, contender="third"))
        folder.write_results(run.environment, [], **run.settings)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    again = run_folder.read(tmp_path / "run")
    assert (again.is_finished, again.settings) == (True, run.settings)
    assert [row.contender for row in again.rows] == ["ours", "theirs", "third"]
    assert again.rows[0] == ROW
    assert len(read_csv(tmp_path / "run" / "results.csv")) == 3
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"env.json", "results.csv", "results.json"}


def test_a_finished_run_that_goes_on_loses_nothing_when_it_is_killed(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.add(ROW)
        folder.write_results({"cpu": "x"}, [], command="bench", seed=3)
    folder = RunFolder.reopened(run_folder.read(tmp_path / "run")).__enter__()  # and no more of it
    folder._lines.close()
    run = run_folder.read(tmp_path / "run")
    assert (run.path, run.is_finished, run.rows, run.settings["seed"]) == (folder.partial, False, [ROW], 3)


def test_rows_taken_out_of_a_run_that_goes_on_are_gone(tmp_path: Path) -> None:
    begun(tmp_path / "run", ROW, replace(ROW, contender="theirs"))
    folder = RunFolder.reopened(run_folder.read(tmp_path / "run"))
    folder.rows = folder.rows[1:]
    with folder:
        pass
    (line,) = (tmp_path / "run" / "rows.jsonl").read_text().splitlines()
    assert json.loads(line)["contender"] == "theirs"


def test_a_run_that_is_still_going_on_is_not_taken_over(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.write_settings({}, command="bench")
        folder.add(ROW)
        run = run_folder.read(tmp_path / "run")
        with pytest.raises(ValueError, match="is still being written by its run"):
            RunFolder.reopened(run).__enter__()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "is no run folder"),
        ({"schema": 1, "command": "bench"}, "has schema 1 of 'bench', expected schema 2"),
        ({"schema": 2}, "has schema 2 of 'another command'"),
    ],
)
def test_what_is_no_run_of_bench_is_not_read(tmp_path: Path, settings: dict[str, Any] | None, message: str) -> None:
    if settings is not None:
        (tmp_path / "results.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        run_folder.read(tmp_path)


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


def test_two_runs_of_one_name_keep_their_rows_apart(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first:
        first.add(ROW)
        second.__enter__()
        second.add(ROW)
    with pytest.raises(FileExistsError, match="run was taken meanwhile: this run is in"):
        second.__exit__(None, None, None)
    for folder in (first.path, second.partial):
        assert len(read_csv(folder / "results.csv")) == 1


def test_a_default_name_that_is_taken_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda *_: "now")
    assert run_folder.default_path() == Path("runs/now")
    with RunFolder(Path("runs/now")):
        assert run_folder.default_path() == Path("runs/now-2")
    (tmp_path / "runs" / "now-2").mkdir()
    assert run_folder.default_path() == Path("runs/now-3")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be made: .*file is a file"):
        RunFolder(tmp_path / "file" / "below" / "run")
