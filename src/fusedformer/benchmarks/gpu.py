"""`make gpu`: build for the GPU present, test, benchmark, sanitise and tune on it: in one budget, into one folder.

For a machine that already has torch, triton, nvcc and pytest and reaches no package index, so nothing is installed.
The steps run in the order of their worth, each with its own log; one that fails does not keep the later ones from
running, since time on a GPU is what is scarce, but the exit status says so. The benchmark goes on in that order too:
measured peaks, attention, decode, rows, models, ours against ours; it has most of the time. An extra is left out where
time or a package is missing: the benchmark leaves a share to float8 and one to ours against ours, and real models and
tiles have what there is at the end. The folder, results/<GPU>/<date>/ with env.json, is what gets committed.
"""

import argparse
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from fusedformer.benchmarks.harness import processes
from fusedformer.benchmarks.report import run_folder
from fusedformer.benchmarks.verify import inputs
from fusedformer.build import find_nvcc
from fusedformer.kernels.attention.hopper.dispatch import SWITCH

ROOT = Path(__file__).resolve().parents[3]
TESTS = str(ROOT / "tests")
BENCH_SHARE = 0.55  # of the budget, for all benchmarks, whatever build and tests take
EXTRA_SHARE = 0.1  # of the budget, of which the benchmark leaves one to float8 and one to ours against ours
LATER_SHARE = 0.2  # of the budget, one half for the sanitizer, the other for report, real models and tuning
SANITIZED = ("softmax", "layer_norm", "attention")  # csrc's two kinds of kernels, and Triton's
TUNED = (("fwd", 128), ("dq", 128), ("dkdv", 128), ("fwd", 64))  # kernel and head dimension
SECONDS_TO_FINISH = 20  # imports before a command reads its budget, files and plots after it
TUNE_SECONDS = SECONDS_TO_FINISH + 20, SECONDS_TO_FINISH + 60  # for one kernel, at least and at most
TEST_PROCESSES = 8  # most of the time of tests on a GPU is that of Triton's compiler
# Without setuptools, whose version decides whether it can read pyproject.toml.
BUILD = (
    "from pathlib import Path; from fusedformer import build; "
    "build.build_extension(Path('fusedformer/_C.so'), build_dir=Path('../build/gpu'))"
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # nothing waits for a network that is not there
STOPPED = "stopped: its time is spent"
GPU_SELECTION = "not slow and not static and not needs_index"
# Of kernels that have not run on a GPU yet, and may wait there for ever: seconds for each file, so that one that does
# takes nothing from the others. Before they are spent, the log has the stack of a test that waits.
HOPPER_TESTS = {"test_attention_hopper.py": 45, "test_attention_fp8.py": 30}
STACK_SECONDS = 20
FLOAT8_SECONDS = SECONDS_TO_FINISH + 20, SECONDS_TO_FINISH + 35  # at least and at most
SELF_TESTED = ("attention_decode", "layer_norm", "softmax")
SELF_TEST_SECONDS = SECONDS_TO_FINISH + 15, SECONDS_TO_FINISH + 25  # at least and at most
VERIFY_SECONDS = SECONDS_TO_FINISH + 20  # at least
VERIFIED = (*inputs.VERSIONS, *(name for name in inputs.LIBRARIES if name != "onnxruntime"))  # which is for a figure


@dataclass(frozen=True)
class Step:
    """One command of the run; `{seconds}` in it stands for what is left of the budget, less the time to finish in."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    # -m puts the working folder on the path: in the root, the links `kernels` and `transformer` would shadow packages.
    folder: Path = ROOT / "src"
    reserve: float = 0.0  # seconds that it leaves to the steps after it
    most: float = math.inf  # seconds that it may take
    least: float = 1.0  # seconds that it needs; with fewer it is left out
    needs: str = ""  # a program, without which the step is left out
    packages: tuple[str, ...] = ()  # of Python, likewise
    runs: tuple[Path, ...] = ()  # folders that the command ends with, those of them in which a run of `bench` is
    # Variables of the environment for the steps after it, unless they set them, if it fails.
    if_failed: dict[str, str] = field(default_factory=dict)
    is_extra: bool = False  # left out or stopped for lack of time, it does not fail the run

    @property
    def missing(self) -> str:
        """What the step needs and this machine lacks; empty if nothing."""
        if self.needs and shutil.which(self.needs, path=_path()) is None:
            return self.needs
        return ", ".join(name for name in self.packages if not inputs.is_installed(name))

    def arguments(self, seconds: float) -> list[str]:
        """The command, for so many seconds in all."""
        left = str(max(1, int(seconds - SECONDS_TO_FINISH)))
        runs = [str(path) for path in self.runs if run_folder.is_run(path)]
        return [part.replace("{seconds}", left) for part in self.command] + runs


def steps(python: str, architecture: str, output: Path, budget: float) -> list[Step]:
    """What `make gpu` runs within `budget` seconds on a GPU of compute capability `architecture`, such as "9.0"."""
    later, extra = LATER_SHARE * budget, EXTRA_SHARE * budget
    has_hopper = architecture == "9.0"
    command = (python, "-m", "fusedformer")
    bench, for_seconds = (*command, "bench"), ("--budget", "{seconds}s")
    # Cases of the GPU have its name: what needs none has been tested where none is scarce.
    selection = ("--worlds", "gpu", "-m", GPU_SELECTION, "-k", "gpu and not test_gpu_run")
    pytest = (python, "-m", "pytest", "-q", *selection)
    hopper = [
        Step(
            Path(name).stem.removeprefix("test_").replace("_", "-"),
            (*pytest, *_parallel("load"), "-o", f"faulthandler_timeout={STACK_SECONDS}", f"{TESTS}/{name}"),
            most=seconds,
            reserve=later,
            # What hangs, or spoils the process's CUDA context, must not do so in the benchmark, which lasts longest.
            if_failed={SWITCH: "0"},
        )
        for name, seconds in HOPPER_TESTS.items()
    ]
    float8 = Step(
        "bench-fp8",
        (*bench, "attention_fp8", *for_seconds, "--output", str(output / "bench-fp8")),
        {SWITCH: "1"},
        reserve=later + extra,
        least=FLOAT8_SECONDS[0],
        most=FLOAT8_SECONDS[1],
        is_extra=True,
    )
    return [
        Step("build", (python, "-c", BUILD), {"TORCH_CUDA_ARCH_LIST": architecture}, reserve=later),
        Step(
            "tests",
            (*pytest, *_parallel("loadfile"), "--require-worlds", "gpu",
             *(f"--ignore={TESTS}/{name}" for name in HOPPER_TESTS), TESTS),
            reserve=BENCH_SHARE * budget + later,
        ),
        *hopper,
        Step(
            "bench",
            (*bench, *for_seconds, "--output", str(output / "bench")),
            reserve=later + (2 if has_hopper else 1) * extra,
        ),
        *([float8] if has_hopper else []),
        Step(
            "self-test",
            (*bench, *SELF_TESTED, "--quick", "--self-test", *for_seconds, "--output", str(output / "self-test")),
            reserve=later,
            least=SELF_TEST_SECONDS[0],
            most=SELF_TEST_SECONDS[1],
            is_extra=True,
        ),
        Step(
            "report",
            (*command, "report", "--output", str(output / "report")),
            reserve=later / 2,
            runs=(output / "bench", output / "bench-fp8"),
        ),
        Step(
            "sanitizer",
            (
                "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9",
                python, "-m", "fusedformer.benchmarks.once", *SANITIZED,
            ),
            # The sanitizer sees an allocation of its own for each tensor, and so an access beyond it.
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            needs="compute-sanitizer",
        ),
        Step(
            "verify",
            (*command, "verify", "--dtype", "bfloat16", "--output", str(output / "verify")),
            least=VERIFY_SECONDS,
            packages=VERIFIED,
            is_extra=True,
        ),
        *(
            Step(
                f"tune-{kernel}-{head_dim}",
                (*command, "tune", kernel, "--head-dim", str(head_dim), *for_seconds),
                least=TUNE_SECONDS[0],
                most=TUNE_SECONDS[1],
                is_extra=True,
            )
            for kernel, head_dim in TUNED
        ),
    ]  # fmt: skip


def _parallel(by: str) -> tuple[str, ...]:
    """Options of pytest for several processes, where they are to be had, that share files or tests: see xdist."""
    if find_spec("xdist") is None:
        return ()
    return ("-n", str(min(TEST_PROCESSES, os.cpu_count() or 1)), "--dist", by)


def run(plan: Sequence[Step], output: Path, budget: float) -> list[str]:
    """Run the steps, each at most as long as the budget still allows; the names of those that failed.

    Args:
        plan: the steps, most valuable first.
        output: folder for `<step>.log`; made if it is missing.
        budget: seconds for all of them together.
    """
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + budget
    failed: list[str] = []
    environment: dict[str, str] = {}
    for step in plan:
        if missing := step.missing:
            print(f"{step.name}: left out, not here: {missing}", flush=True)
            continue
        seconds = min(deadline - time.monotonic() - step.reserve, step.most)
        if seconds < step.least:
            print(f"{step.name}: left out, it has {max(0.0, seconds):.0f} s and needs {step.least:.0f}", flush=True)
            if not step.is_extra:
                failed.append(step.name)
            continue
        status = _run_step(step, output / f"{step.name}.log", seconds, environment)
        is_short = step.is_extra and seconds < step.most and status == STOPPED
        if status != "0" and not is_short:
            failed.append(step.name)
            environment |= step.if_failed
    return failed


def _run_step(step: Step, log: Path, seconds: float, given: Mapping[str, str]) -> str:
    """Its exit status, or STOPPED."""
    command = step.arguments(seconds)
    ours = {"PYTHONPATH": str(ROOT / "src"), "PATH": _path(), **OFFLINE}
    environment = {**os.environ, **ours, **given, **step.environment}
    print(f"{step.name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    with log.open("w") as stream:
        process = processes.start(command, cwd=step.folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            status = str(process.wait(timeout=seconds))
        except subprocess.TimeoutExpired:
            status = STOPPED
        finally:
            processes.kill(process)
            process.wait()
    print(*log.read_text().splitlines()[-25:], sep="\n")
    print(f"{step.name}: exit {status} after {time.monotonic() - started:.0f} s, log in {log}", flush=True)
    return status


def _path() -> str:
    """Where programs are looked for: last beside nvcc, for CUDA's folder is not on every PATH."""
    nvcc = find_nvcc()
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *([str(nvcc.parent)] if nvcc else [])])


def default_output(gpu: str) -> Path:
    """results/<GPU>/<date> of the checkout, with -2, -3 ... where there was a run that day already."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    first = ROOT / "results" / name / time.strftime("%Y-%m-%d", time.gmtime())
    names = itertools.chain([first], (first.with_name(f"{first.name}-{number}") for number in itertools.count(2)))
    return next(path for path in names if not path.exists())


def write_environment(output: Path) -> None:
    """env.json, before anything can fail."""
    from fusedformer.benchmarks.report import machine  # imports PyTorch

    (output / "env.json").write_text(json.dumps(machine.collect(), indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command behind `make gpu`; 0 if every step passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480, help="seconds in all (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for logs and results (default: results/<GPU>/<date>)")
    options = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available():
        print("make gpu: no CUDA device here; `make test` and `make bench` run without one", file=sys.stderr)
        return 2
    major, minor = torch.cuda.get_device_capability()
    output = (options.output or default_output(torch.cuda.get_device_name())).resolve()
    output.mkdir(parents=True, exist_ok=True)
    write_environment(output)
    plan = steps(sys.executable, f"{major}.{minor}", output, options.budget)
    failed = run(plan, output, options.budget)
    print(f"failed: {', '.join(failed)}" if failed else f"all steps passed; everything is in {output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
