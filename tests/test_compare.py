"""`compare`: verdicts from samples of two runs, what a lost time counts for, and what the command exits with."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fusedformer.benchmarks import commands, compare
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import RunFolder, read

QUIET = {"cells": 100, "same": 100, "floor": 0.01}


def samples(median: float, seed: int = 0, spread: float = 0.005, n: int = 20) -> tuple[float, ...]:
    generator = random.Random(seed)
    return tuple(median * generator.lognormvariate(0, spread) for _ in range(n))


def row(seconds: float = 1e-3, seed: int = 0, **fields: Any) -> Row:
    values = samples(seconds, seed)
    known: dict[str, Any] = {"kind": "time", "subject": "softmax", "case": "M=8 N=64", "world": "gpu"}
    known |= {"direction": "forward", "contender": "ours", "time_p50_s": seconds, "samples_s": values}
    return Row(**known | fields)


def write(path: Path, rows: Sequence[Row], noise: dict[str, Any] | None = None, **environment: Any) -> Path:
    with RunFolder(path) as folder:
        for one in rows:
            folder.add(one)
        folder.write_results({"cpu": "x", **environment}, [], command="bench", noise=noise or QUIET)
    return path


def verdicts(tmp_path: Path, a: Row, b: Row, **noise: Any) -> str:
    folders = [write(tmp_path / name, [one], noise or None) for name, one in (("a", a), ("b", b))]
    (found,) = compare.compare(*map(read, folders))
    return found.verdict


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "SAME"), (1.2, "SLOWER"), (0.8, "FASTER"), (1.005, "SAME"), (1.021, "UNSURE")]
)
def test_the_verdict_follows_the_interval(factor: float, verdict: str, tmp_path: Path) -> None:
    assert verdicts(tmp_path, row(), row(1e-3 * factor, seed=1)) == verdict


def test_what_is_within_the_noise_of_either_run_is_no_difference(tmp_path: Path) -> None:
    assert verdicts(tmp_path, row(), row(1.2e-3, seed=1), cells=10, same=5, floor=0.3) == "SAME"


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    trials = 400
    inside = 0
    for seed in range(trials):
        a, b = samples(1.0, 2 * seed, 0.1, n=8), samples(1.3, 2 * seed + 1, 0.1, n=12)
        found = compare.ratio_interval(a, b)
        assert found is not None
        assert found.low <= found.median <= found.high
        inside += found.low <= 1.3 <= found.high
    assert 0.93 <= inside / trials <= 0.98


def test_the_fewest_samples_have_an_interval_and_fewer_have_none() -> None:
    found = compare.ratio_interval([1.0] * 6, [2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    assert found is not None
    assert found.low == 2.0
    assert found.median == pytest.approx(2.25)
    assert found.high == 2.5
    assert compare.ratio_interval([1.0] * 5, [1.0] * 6) is None


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("ok", "wrong", "SLOWER"),
        ("ok", "out of memory", "SLOWER"),
        ("failed", "ok", "FASTER"),
        ("ok", "skipped", "UNSURE"),
        ("missing", "ok", "UNSURE"),
    ],
)
def test_a_time_that_is_lost_counts_and_one_that_was_not_tried_does_not(
    a: str, b: str, verdict: str, tmp_path: Path
) -> None:
    lost: dict[str, Any] = {"time_p50_s": None, "samples_s": ()}
    rows = [row() if status == "ok" else row(**lost, status=status, reason="why") for status in (a, b)]
    assert verdicts(tmp_path, *rows) == verdict


def test_what_has_no_result_in_either_run_is_left_out(tmp_path: Path) -> None:
    lost = row(time_p50_s=None, samples_s=(), status="missing", reason="no package", contender="theirs")
    a, b = (write(tmp_path / name, [row(), lost]) for name in ("a", "b"))
    assert [one.b.contender for one in compare.compare(read(a), read(b))] == ["ours"]


def test_an_error_that_leaves_its_budget_is_slower_and_one_within_is_the_same(tmp_path: Path) -> None:
    right = Row(kind="error", subject="gelu", world="emulated", direction="forward", contender="ours", error_ratio=0.5)
    assert verdicts(tmp_path / "1", right, replace(right, error_ratio=0.7)) == "SAME"
    wrong = replace(right, status="wrong", reason="error of dx is 3 times its budget", error_ratio=3.0)
    assert verdicts(tmp_path / "2", right, wrong) == "SLOWER"


def invoke(*arguments: Path) -> Result:
    return CliRunner(env={"COLUMNS": "250", "NO_COLOR": "1"}).invoke(commands.app, ["compare", *map(str, arguments)])


def test_the_command_names_the_slower_rows_and_exits_with_1(tmp_path: Path) -> None:
    theirs = row(2e-3, contender="F.softmax", version="torch 2.13")
    a = write(tmp_path / "a", [row(), theirs, row(case="M=8 N=128")])
    b = write(tmp_path / "b", [row(1.5e-3, seed=1), theirs, row(case="M=8 N=256")], cpu="y")
    worse = invoke(a, b)
    assert worse.exit_code == 1
    (line,) = [line for line in worse.output.splitlines() if "SLOWER" in line and "M=8 N=64" in line]
    assert all(text in line for text in ("softmax", "forward", "ours", "1 ms", "1.5 ms", "1.5"))
    for text in (
        "1 SLOWER, 0 FASTER, 0 UNSURE, 1 SAME",
        "of different machines",
        "1 rows of A alone, 1 of B alone",
        "took 1.000 times as long in B",
    ):
        assert text in worse.output
    assert invoke(b, a).exit_code == 0
    same = invoke(a, a)
    assert (same.exit_code, "0 SLOWER, 0 FASTER, 0 UNSURE, 3 SAME" in same.output) == (0, True)


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [row()])
    other = write(tmp_path / "other", [row(subject="gelu")])
    for arguments, text in (
        ((a, tmp_path / "none"), "is no run folder"),
        ((a, other), "have no row in common"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, text in result.output.replace("\n", " ")) == (2, True)
    results = json.loads((a / "results.json").read_text())
    (a / "results.json").write_text(json.dumps(results | {"schema": 1}))
    assert "expected schema 2" in invoke(a, other).output
