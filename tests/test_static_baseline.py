"""The static baseline as a gate: worse fails with the variant named, better asks to be recorded, the rest is silent."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fusedformer.benchmarks import commands, static_baseline
from fusedformer.benchmarks.static import cache, collect
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.benchmarks.static_hopper import collect as hopper_world
from fusedformer.benchmarks.static_hopper.row import HopperRow

ROW = StaticRow(
    op="softmax",
    kernel="softmax_fwd_kernel",
    variant="float, RowShape<Blocks, 8>",
    arch=90,
    registers=64,
    global_loads=8,
    global_loads_128=8,
    instructions_per_element=30.0,
)
TRITON = StaticRow(
    op="attention", kernel="attention_fwd_kernel", variant="bf16 d64", arch=90, registers=200,
    matrix={"HGMMA": 24}, programs=2, predicted_tflops=500.0,
)  # fmt: skip


def only(now: StaticRow, then: StaticRow) -> static_baseline.Change:
    (change,) = static_baseline.changes([now], [then])
    return change


@pytest.mark.parametrize(
    ("row", "changed", "text"),
    [
        (ROW, {"spill_bytes": 8}, "bytes spilled: 0 -> 8"),
        (ROW, {"stack_bytes": 16}, "bytes of stack: 0 -> 16"),
        (ROW, {"registers": 72}, "warps its registers leave room for: 32 -> 28"),
        (ROW, {"shared_bytes": 60_000}, "blocks its shared memory leaves room for: 64 -> 3"),
        (ROW, {"global_loads_128": 4}, "share of 128-bit loads: 1 -> 0.5"),
        (ROW, {"instructions_per_element": 31.0}, "instructions an element: 30 -> 31"),
        (ROW, {"warnings": ("(C7511) Potential Performance Loss: wgmma serialized",)}, "gates failed: 0 -> 1"),
        (TRITON, {"matrix": {"HMMA": 96}}, "generation of matrix instructions: 2 -> 1"),
        (TRITON, {"predicted_tflops": 450.0}, "predicted TFLOP/s: 500 -> 450"),
        (TRITON, {"programs": 1}, "programs an SM holds: 2 -> 1"),
    ],
)
def test_each_figure_can_be_worse_and_the_way_back_is_better(row: StaticRow, changed: Any, text: str) -> None:
    worse = replace(row, **changed)
    there = only(worse, row)
    assert text in there.worse
    assert not there.news
    back = only(row, worse)
    assert not back.worse
    before, after = text.split(": ")[1].split(" -> ")
    assert text.replace(f"{before} -> {after}", f"{after} -> {before}") in back.news


def test_what_costs_a_launch_nothing_is_no_change() -> None:
    # 57 to 64 registers are allocated alike; a rate is rounded.
    assert static_baseline.changes([replace(ROW, registers=57)], [ROW]) == []
    assert static_baseline.changes([replace(TRITON, registers=255, predicted_tflops=499.0)], [TRITON]) == []


def test_new_and_gone_variants_are_told_but_not_where_nothing_was_compiled() -> None:
    other = replace(ROW, variant="float, RowShape<Blocks, 4>")
    assert [change.news for change in static_baseline.changes([ROW, other], [ROW])] == [("is new",)]
    assert [change.news for change in static_baseline.changes([ROW], [ROW, other])] == [("is gone",)]
    skipped = StaticRow(op="softmax", arch=90, skipped="no nvcc")
    assert static_baseline.changes([skipped], [ROW, other]) == []
    assert static_baseline.changes([TRITON], [TRITON, replace(TRITON, arch=80)]) == []  # sm_80 was not asked for


def run(monkeypatch: pytest.MonkeyPatch, rows: list[StaticRow], baseline: Path) -> Result:
    monkeypatch.setattr(collect, "collect", lambda archs, ops, progress, record: rows)
    monkeypatch.setattr(hopper_world, "collect", lambda progress, record: [])
    environment = {"COLUMNS": "300", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(commands.app, ["static", "--baseline", str(baseline)])


def test_the_command_fails_on_worse_and_asks_to_record_better(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    baseline = tmp_path / "rows.json"
    baseline.write_text(json.dumps([row.to_dict() for row in (ROW, TRITON)]))
    same = run(monkeypatch, [ROW, TRITON], baseline)
    assert (same.exit_code, "Every variant is as in the baseline" in same.output) == (0, True)
    better = run(monkeypatch, [ROW, replace(TRITON, predicted_tflops=600.0)], baseline)
    assert (better.exit_code, "Record the change" in better.output) == (0, True)
    worse = run(monkeypatch, [replace(ROW, registers=128), replace(TRITON, predicted_tflops=600.0)], baseline)
    assert worse.exit_code == 1
    assert "softmax_fwd_kernel float, RowShape<Blocks, 8> sm_90" in worse.output
    assert "warps its registers leave room for: 32 -> 16" in worse.output
    assert "Worse than the baseline: 1 of" in worse.output


def test_the_record_of_the_checkout_is_a_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    if not cache.RECORD.is_file():
        pytest.skip("static world: no checkout")
    rows = static_baseline.load(cache.RECORD.parent)
    assert len(rows) > len(static_baseline.load(cache.RECORD)) > 1000
    assert {row.arch for row in rows} == set(collect.ARCHS)
    assert {row.triton for row in rows if isinstance(row, HopperRow)} == {version("triton")}
    assert static_baseline.changes(rows, rows) == []


@pytest.mark.parametrize("content", [None, "", "[1]", '{"a": 3}', "[]", '[{"op": "softmax"}]'])
def test_a_file_that_is_no_baseline_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"rows\.json"):
        static_baseline.load(path)
    result = CliRunner(env={"COLUMNS": "300"}).invoke(commands.app, ["static", "--baseline", str(path)])
    assert (result.exit_code, "rows.json" in result.output) == (2, True)
