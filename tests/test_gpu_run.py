"""`make gpu`: order, budget and exit status, with commands that need no GPU."""

import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusedformer.benchmarks import bench, gpu, once
from fusedformer.benchmarks.ops import OPS, TIMED_OPS
from fusedformer.benchmarks.report.console import Console


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_every_step_runs_and_keeps_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = [
        gpu.Step("first", python("import os; print('arch', os.environ['ARCH'])"), {"ARCH": "9.0"}),
        gpu.Step("broken", python("print('half way'); raise SystemExit(3)")),
        gpu.Step("last", (*python("import sys; print('left', sys.argv[1])"), "{seconds}s")),
    ]
    assert gpu.run(plan, tmp_path / "out", budget=60) == ["broken"]
    logs = {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert logs["first"] == "arch 9.0\n"
    assert logs["broken"] == "half way\n"
    assert 30 <= int(logs["last"].removeprefix("left ").strip().removesuffix("s")) <= 40
    assert "broken: exit 3" in capsys.readouterr().out


def test_the_budget_stops_a_step_and_what_follows(tmp_path: Path) -> None:
    plan = [
        gpu.Step("endless", python("import time; print('began', flush=True); time.sleep(60)")),
        gpu.Step("late", python("print('must not run')")),
    ]
    started = time.monotonic()
    assert gpu.run(plan, tmp_path, budget=2) == ["endless", "late"]
    assert time.monotonic() - started < 10
    assert (tmp_path / "endless.log").read_text() == "began\n"
    assert not (tmp_path / "late.log").exists()


def test_a_step_that_may_hang_has_a_limit_of_its_own(tmp_path: Path) -> None:
    plan = [
        gpu.Step("endless", python("import time; time.sleep(60)"), most=1),
        gpu.Step("last", python("print('ran')")),
    ]
    assert gpu.run(plan, tmp_path, budget=20) == ["endless"]
    assert (tmp_path / "last.log").read_text() == "ran\n"


def test_the_tests_leave_the_benchmark_its_time(tmp_path: Path) -> None:
    plan = [
        gpu.Step("endless", python("import time; time.sleep(60)"), reserve=8),
        gpu.Step("last", (*python("import sys; print('left', sys.argv[1])"), "{seconds}s")),
    ]
    assert gpu.run(plan, tmp_path, budget=10) == ["endless"]
    assert (tmp_path / "last.log").read_text().startswith("left ")
    _, tests, _, benchmark, *_ = gpu.steps("python3", "9.0", tmp_path, budget=400)
    assert (tests.reserve, benchmark.reserve) == (300, 80)


def test_what_a_stopped_step_has_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    assert gpu.run([gpu.Step("parent", python(code))], tmp_path, budget=2) == ["parent"]
    child = Path("/proc", (tmp_path / "parent.log").read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_no_step_that_imports_runs_where_the_links_are(tmp_path: Path) -> None:
    for step in gpu.steps("python3", "9.0", tmp_path, budget=480):
        assert "-m" not in step.command or not (step.folder / "kernels").exists()


def test_the_plan_builds_tests_and_benchmarks_for_the_gpu_present(tmp_path: Path) -> None:
    build, tests, hopper, benchmark, report, float8, sanitizer, *tuning = gpu.steps(
        "python3", "9.0", tmp_path, budget=480
    )
    assert build.environment == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    compile(gpu.BUILD, "build", "exec")
    assert "gpu" in tests.command
    assert all((gpu.ROOT / "tests" / name).is_file() for name in gpu.HOPPER_TESTS)
    for name in gpu.HOPPER_TESTS:
        assert any(part.endswith(f"/{name}") for part in hopper.command)
        assert any(part.startswith("--ignore=") and part.endswith(f"/{name}") for part in tests.command)
    assert float8.environment == {"FUSEDFORMER_HOPPER": "1"}
    assert "attention_fp8" in float8.command
    assert "attention_fp8" in TIMED_OPS
    assert "bench-fp8" not in [step.name for step in gpu.steps("python3", "8.0", tmp_path, budget=480)]
    assert str(tmp_path / "bench") in benchmark.command
    assert report.command[-4:] == ("report", str(tmp_path / "bench"), "--output", str(tmp_path / "report"))
    assert (sanitizer.command[0], sanitizer.needs) == ("compute-sanitizer", "compute-sanitizer")
    assert sanitizer.command[-3:] == gpu.SANITIZED
    assert set(gpu.SANITIZED) <= set(OPS)
    assert [step.name for step in tuning] == ["tune-fwd-128", "tune-dq-128", "tune-dkdv-128", "tune-fwd-64"]
    for step in (benchmark, float8, *tuning):
        assert step.command[step.command.index("--budget") + 1] == "{seconds}s"


def test_a_step_whose_program_is_missing_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = [gpu.Step("absent", ("no-such-program",), needs="no-such-program"), gpu.Step("last", python("print('ran')"))]
    assert gpu.run(plan, tmp_path, budget=30) == []
    assert "absent: left out, no-such-program is not here" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"last.log"}


def test_what_an_extra_step_has_no_time_for_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = [
        gpu.Step("extra", python("print('must not run')"), least=100, is_extra=True),
        gpu.Step("needed", python("print('must not run')"), least=100),
    ]
    assert gpu.run(plan, tmp_path, budget=30) == ["needed"]
    printed = capsys.readouterr().out
    assert "extra: left out, it has 30 s and needs 100" in printed or "extra: left out, it has 29 s" in printed
    assert not list(tmp_path.iterdir())


def test_programs_beside_nvcc_are_found_and_nothing_asks_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "only-beside-nvcc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho offline $HF_HUB_OFFLINE\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpu, "find_nvcc", lambda: program.parent / "nvcc")
    assert gpu.run([gpu.Step("beside", (program.name,), needs=program.name)], tmp_path / "out", budget=30) == []
    assert (tmp_path / "out" / "beside.log").read_text() == "offline 1\n"


def test_the_sanitizer_watches_every_small_case_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert once.main(["softmax"]) == 0
    assert capsys.readouterr().out.count(": ok") == len(OPS["softmax"].error_cases)
    softmax = OPS["softmax"]
    off = replace(softmax, contenders={**softmax.contenders, "ours": lambda x: torch.softmax(x, -1) + 0.1})
    monkeypatch.setitem(OPS, "softmax", off)
    assert once.main(["softmax"]) == 1
    assert "times its budget" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no op 'sofmax'"):
        once.main(["sofmax"])


def test_times_come_before_errors_that_the_tests_have_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what there is no time for is said, for a run that goes on."""
    order: list[str] = []
    task = bench.Task.of(bench.Options(tmp_path / "run", ("softmax",), budget_s=1))
    monkeypatch.setattr(bench._Bench, "_on_stream", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(bench._Bench, "_time", lambda self, comparisons: order.append("times"))
    monkeypatch.setattr(bench.worlds, "error_rows", lambda *_: order.append("errors"))
    with Console() as console:
        on_gpu = bench._Bench(replace(task, device=torch.device("cuda")), console)
        with on_gpu.folder:
            on_gpu.measure()
    assert order == ["times"]
    found = {(row.world, row.status, row.reason) for row in on_gpu.folder.rows}
    spent = "the budget of 1 s was spent"
    assert {("reference", "skipped", spent), ("gpu", "skipped", spent)} <= found


def test_the_folder_is_named_by_gpu_and_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu.time, "strftime", lambda *_: "2026-11-22")
    first = gpu.default_output("NVIDIA H200")
    assert first == tmp_path / "results" / "nvidia-h200" / "2026-11-22"
    first.mkdir(parents=True)
    gpu.write_environment(first)
    assert "packages" in json.loads((first / "env.json").read_text())
    assert gpu.default_output("NVIDIA H200").name == "2026-11-22-2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
