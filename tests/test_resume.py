"""A run that was killed, or had no time, goes on: nothing that was measured is measured again or lost."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusedformer.benchmarks import bench, ops, resuming
from fusedformer.benchmarks.harness.comparison import AGAIN
from fusedformer.benchmarks.harness.op import Op
from fusedformer.benchmarks.report import run_folder
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.rows import Row

# Small, quick to time, and with contenders of each kind of fate.
PROGRAM = """if True:
    import sys, time
    from pathlib import Path
    import torch
    from fusedformer.benchmarks import bench
    from fusedformer.benchmarks.report.console import Console
    bench.CLOSING_SECONDS = 0.0
    bench.SECONDS = 0.0
    torch.set_num_threads(1)
    options = bench.Options(Path(sys.argv[1]), ("softmax",), sweep=bench.parse_sweep("rows=4 N=8,16"), budget_s=100)
    collect, seen = bench._Bench._collect, []
    def slowly(self, rows):
        def one_by_one():
            for row in rows:
                yield row
                seen.append(row)
                if len(seen) == 7:
                    print("measured", flush=True)
                    time.sleep(60)
        collect(self, one_by_one())
    bench._Bench._collect = slowly
    with Console() as console:
        bench.run(bench.Task.of(options), console)
"""


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time kept for the end, and none above the least rounds."""
    monkeypatch.setattr(bench, "CLOSING_SECONDS", 0.0)
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "find_spec", lambda name: None)  # no pictures


def options(output: Path, **changes: Any) -> bench.Options:
    base = bench.Options(output, ("softmax",), sweep=bench.parse_sweep("rows=4 N=8,16"), budget_s=100)
    return replace(base, **changes)


def run(options: bench.Options, resumed: run_folder.Run | None = None) -> bool:
    with Console() as console:
        return bench.run(bench.Task.of(options, resumed), console)


def only(monkeypatch: pytest.MonkeyPatch, **contenders: Any) -> Op:
    """Softmax by ours and these."""
    op = replace(ops.OPS["softmax"], contenders={"ours": ops.OPS["softmax"].contenders["ours"], **contenders})
    monkeypatch.setattr(bench, "TIMED_OPS", {"softmax": op})
    return op


def test_a_run_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert any(line == "measured\n" for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
    killed = run_folder.read(tmp_path / "run")
    assert (killed.is_finished, len(killed.rows)) == (False, 7)
    whole = [row for row in killed.rows if row.comparison == killed.rows[0].comparison]
    assert len(whole) == 5  # of the contenders; the comparison after it was cut off

    assert run(bench.Options.of(killed, budget_s=100), killed)
    finished = run_folder.read(tmp_path / "run")
    assert finished.is_finished
    assert finished.rows[:5] == killed.rows[:5]  # with their samples
    assert len(finished.rows) == len({row.key for row in finished.rows}) == 2 * 2 * 5
    assert {row.sizes["N"] for row in finished.rows} == {8, 16}
    assert not list(tmp_path.glob(".run*"))


def test_what_there_was_no_time_for_is_measured_later(tmp_path: Path) -> None:
    run(options(tmp_path / "run", budget_s=0.001))
    first = run_folder.read(tmp_path / "run")
    assert {row.status for row in first.rows} == {"skipped"}
    run(bench.Options.of(first, budget_s=100), first)
    rows = run_folder.read(tmp_path / "run").rows
    assert {row.status for row in rows if row.contender == "ours"} == {"ok"}
    assert len(rows) == len({row.key for row in rows}) == len(first.rows)


def test_the_settings_of_a_run_are_in_its_folder(tmp_path: Path) -> None:
    run(options(tmp_path / "run"))
    settings = run_folder.read(tmp_path / "run").settings
    assert (settings["sweep"], settings["subjects"]) == ("rows=4 N=8,16", ["softmax"])
    assert settings["peaks"][0]["source"] == "measured here"
    assert settings["noise"]["cells"] == 1
    times = [row for row in run_folder.read(tmp_path / "run").rows if row.time_p50_s]
    for row in times:
        assert row.clock == "wall"
        assert row.peak_share is not None
        assert row.peak_memory_bytes is not None
        assert row.compile_s is not None
        assert row.version or row.contender == "ours"


def test_another_machine_or_version_does_not_go_on(tmp_path: Path) -> None:
    run(options(tmp_path / "run", budget_s=0.001))
    first = run_folder.read(tmp_path / "run")
    other = replace(first, environment={**first.environment, "cpu": "another"})
    with pytest.raises(ValueError, match=r"cannot go on here, it was made with cpu 'another', here '"):
        bench.Task.of(bench.Options.of(other, 100), other)


def test_errors_of_an_op_that_broke_off_are_measured_again() -> None:
    base = Row(kind="error", subject="softmax", world="emulated", direction="forward + backward", contender="ours")
    cases = [replace(base, case=str(case)) for case in ops.OPS["softmax"].error_cases]
    assert resuming.finished_rows(cases, {}) == cases
    assert resuming.finished_rows(cases[:-1], {}) == []
    missing = [replace(base, status="missing", reason="no g++")]
    assert resuming.finished_rows(missing, {}) == missing
    assert resuming.finished_rows([replace(base, status="skipped")], {}) == []


def test_a_wrong_a_raising_and_a_greedy_contender_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(x: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**50)

    def raising(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this")

    only(monkeypatch, off=lambda x: torch.softmax(x, -1) * 1.01, greedy=greedy, raising=raising)
    assert run(options(tmp_path / "run"))
    for row in run_folder.read(tmp_path / "run").rows:
        expected = {
            "ours": ("ok", ""),
            "off": ("wrong", "times its budget"),
            "greedy": ("out of memory", "out of memory"),
            "raising": ("failed", "RuntimeError: no kernel for this"),
        }[row.contender]
        assert row.status == expected[0]
        assert row.reason.endswith(expected[1])
        assert (row.time_p50_s is not None) == (row.contender == "ours")


class TestSelfTest:
    def test_ours_is_timed_against_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        only(monkeypatch)
        run(options(tmp_path / "run", self_test=True))
        found = run_folder.read(tmp_path / "run")
        assert {row.contender for row in found.rows} == {"ours", AGAIN}
        assert found.settings["noise"]["cells"] == 4 == sum(row.ratio is not None for row in found.rows)

    def test_noise_fails_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def slows_down(x: torch.Tensor) -> torch.Tensor:
            calls.append(0)
            time.sleep(1e-4 * (len(calls) % 7))
            return torch.softmax(x, -1)

        only(monkeypatch)
        monkeypatch.setattr(
            bench, "TIMED_OPS", {"softmax": replace(ops.OPS["softmax"], contenders={"ours": slows_down})}
        )
        assert not run(options(tmp_path / "run", self_test=True))
        noise = json.loads((tmp_path / "run" / "results.json").read_text())["noise"]
        assert noise["same"] < noise["cells"]
