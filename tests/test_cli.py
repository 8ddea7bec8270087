"""The command line: what it prints, what it exits with, and what it says of bad options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fusedformer import cli
from fusedformer.benchmarks import bench, commands, ops, options
from fusedformer.benchmarks.report import machine
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.static import collect
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.benchmarks.static_hopper import collect as hopper_world
from fusedformer.benchmarks.static_hopper.row import HopperRow
from fusedformer.kernels import library


def invoke(*arguments: str) -> Result:
    # Wide enough that messages are not wrapped.
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(commands.app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("bench", "sotfmax"),
            "no op or model 'sotfmax': choose from attention, attention_decode, attention_varlen, attention_bias, ",
        ),
        (("bench", "--budget", "3x"), "'3x' is no duration: write one such as 480s, 8m or 1h"),
        (("bench", "--budget", "0s"), "'0s' is no duration"),
        (("bench", "--sweep", "S"), "'S' is no term of a sweep"),
        (("bench", "softmax", "S=64"), "softmax has no S to sweep: it has M, N, dtype"),
        (("bench", "--resume", "nowhere"), "nowhere is no run folder"),
        (("bench", "--seed", "-1"), "seed '-1' is no integer from 0 to 2**63 - 1"),
        (("bench", "--output", "."), ". exists and is not an empty folder"),
        (("static", "--arch", "90,75"), "unknown architecture '75': choose from 80, 90, 100, 120"),
        (("static", "--op", "gleu"), "no op with device code 'gleu': choose from add_layer_norm, add_rms_norm,"),
        (("bench", "--output", f"{__file__}/run"), "test_cli.py is a file"),
        (("static", "--json", "no/such/folder/rows.json"), "no/such/folder is no folder"),
        (("static", "--json", "."), ". is a folder, expected the name of a file"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_a_bad_option_is_named_and_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("480s", 480), ("8m", 480), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert options.parse_duration(text) == seconds


def test_bench_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[bench.Options] = []

    def run(task: bench.Task, console: Console) -> bool:
        seen.append(task.options)
        return task.options.quick

    monkeypatch.setattr(bench, "run", run)
    path = tmp_path / "run"
    arguments = ("bench", "gelu", "encoder", "--budget", "2m", "--output", str(path), "--seed", "7")
    assert invoke(*arguments).exit_code == 1
    assert invoke("bench", "--quick").exit_code == 0
    assert invoke("bench", "attention", "--sweep", "S=64", "causal=0,1", "--self-test").exit_code == 1
    first, second, third = seen
    assert first == bench.Options(path, ["gelu", "encoder"], quick=False, budget_s=120, seed=7)
    assert (second.subjects, second.quick, second.budget_s) == ([], True, 140)
    assert (third.subjects, str(third.sweep), third.self_test) == (["attention"], "S=64 causal=0,1", True)
    assert second.output.parent == Path("runs")


def test_doctor_says_what_serves_each_op() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert f"CUDA extension: {library.extension_status()}" in result.output
    drop_in = ("Drop-in", "register_transformers", "register_torch: off in this process")
    for text in (*ops.OPS, *drop_in, "plain PyTorch", "Triton kernel", "nvcc", "torch"):
        assert text in result.output


def test_doctor_says_why_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    table = machine.implementation_table()
    (softmax,) = [line for line in table.lines if line[0] == "softmax"]
    assert softmax[3] == "nothing: no g++"


@pytest.mark.parametrize(("spilled", "status"), [(0, 0), (8, 1)])
def test_static_prints_and_writes_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spilled: int, status: int
) -> None:
    row = StaticRow(
        op="softmax",
        kernel="softmax_fwd_kernel",
        variant="float, RowShape<Blocks, 8>",
        arch=90,
        registers=32,
        spill_bytes=spilled,
    )
    monkeypatch.setattr(collect, "collect", lambda archs, ops, progress, record: [row] if archs == [90] else [])
    monkeypatch.setattr(hopper_world, "collect", lambda progress, record: [])
    result = invoke("static", "--arch", "90", "--json", str(tmp_path / "rows.json"))
    assert result.exit_code == status
    assert "softmax_fwd_kernel" in result.output
    (written,) = json.loads((tmp_path / "rows.json").read_text())
    assert written["registers"] == 32


@pytest.mark.parametrize("part", [("--arch", "90"), ("--op", "gelu")])
def test_static_records_all_architectures_and_ops_only(part: tuple[str, str]) -> None:
    result = invoke("static", *part, "--record")
    assert result.exit_code == 2
    assert "all architectures and all ops" in result.output


def test_static_compiles_the_ops_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hopper kernels are attention's."""
    asked: list[tuple[str, ...]] = []

    def collect_ops(archs: list[int], ops: tuple[str, ...], **others: object) -> list[StaticRow]:
        asked.append(ops)
        return [StaticRow(op=op, kernel=f"{op}_fwd_kernel", arch=80) for op in ops]

    hopper_row = HopperRow(op="attention", kernel="attention_hopper_fwd_kernel", arch=90, skipped="no triton")
    monkeypatch.setattr(collect, "collect", collect_ops)
    monkeypatch.setattr(hopper_world, "collect", lambda progress, record: [hopper_row])
    some = invoke("static", "--op", "softmax", "--op", "gelu", "--op", "softmax")
    assert (some.exit_code, "no triton" in some.output) == (0, False)
    assert "gelu_fwd_kernel" in some.output
    for arguments in (("static", "--op", "attention"), ("static",)):
        assert "no triton" in invoke(*arguments).output
    assert asked == [("softmax", "gelu"), ("attention",), collect.known_ops()]


def test_static_that_cannot_compile_says_so_and_exits_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [StaticRow(op="softmax", arch=90, skipped="no nvcc"), StaticRow(op="gelu", arch=90, skipped="no nvcc")]
    monkeypatch.setattr(collect, "collect", lambda archs, ops, progress, record: rows[:1])
    monkeypatch.setattr(hopper_world, "collect", lambda progress, record: rows[1:])
    result = invoke("static")
    assert result.exit_code == 3
    assert "2 of 2 not compiled" in result.output


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f"fusedformer needs {missing}: pip install 'fusedformer[bench]'\n"


def test_the_module_runs_as_a_command() -> None:
    process = subprocess.run([sys.executable, "-m", "fusedformer", "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    for command in ("doctor", "bench", "static"):
        assert command in process.stdout
