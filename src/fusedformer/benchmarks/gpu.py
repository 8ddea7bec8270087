"""`make gpu`: build for the GPU present, run the test suite on it, then `bench`, within one budget and into one folder.

For a machine that already has torch, triton, nvcc and pytest and reaches no package index, so nothing is installed.
The steps run in the order of their worth, each with its own log; one that fails does not keep the later ones from
running, since time on a GPU is what is scarce, but the exit status says so.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusedformer.benchmarks.harness import processes

ROOT = Path(__file__).resolve().parents[3]
TESTS = str(ROOT / "tests")
BENCH_SECONDS = 120.0  # of the budget, whatever the tests take
SECONDS_TO_FINISH = 20  # imports before a command reads its budget, files and plots after it
GPU_SELECTION = "not slow and not static and not needs_index"


@dataclass(frozen=True)
class Step:
    """One command of the run; `{seconds}` in it stands for what is left of the budget, less the time to finish in."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    # -m puts the working folder on the path: in the root, the links `kernels` and `transformer` would shadow packages.
    folder: Path = ROOT / "src"
    reserve: float = 0.0  # seconds that it leaves to the steps after it


def steps(python: str, architecture: str, output: Path) -> list[Step]:
    """What `make gpu` runs on a GPU of compute capability `architecture`, such as "9.0"."""
    return [
        Step("build", (python, "setup.py", "build_ext", "--inplace"), {"TORCH_CUDA_ARCH_LIST": architecture}, ROOT),
        Step(
            "tests",
            (python, "-m", "pytest", "-q", "--worlds", "gpu", "--require-worlds", "gpu", "-m", GPU_SELECTION, TESTS),
            reserve=BENCH_SECONDS,
        ),
        Step(
            "bench",
            (python, "-m", "fusedformer", "bench", "--budget", "{seconds}s", "--output", str(output / "bench")),
        ),
    ]


def run(plan: Sequence[Step], output: Path, budget: float) -> list[str]:
    """Run the steps, each at most as long as the budget still allows; the names of those that failed.

    Args:
        plan: the steps, most valuable first.
        output: folder for `<step>.log`; made if it is missing.
        budget: seconds for all of them together.
    """
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + budget
    failed = []
    for step in plan:
        seconds = deadline - time.monotonic() - step.reserve
        if seconds < 1 or not _run_step(step, output / f"{step.name}.log", seconds):
            failed.append(step.name)
    return failed


def _run_step(step: Step, log: Path, seconds: float) -> bool:
    left = str(max(1, int(seconds - SECONDS_TO_FINISH)))
    command = [part.replace("{seconds}", left) for part in step.command]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | step.environment
    print(f"{step.name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    with log.open("w") as stream:
        process = processes.start(command, cwd=step.folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            status = str(process.wait(timeout=seconds))
        except subprocess.TimeoutExpired:
            status = "stopped: its time is spent"
        finally:
            processes.kill(process)
            process.wait()
    print(*log.read_text().splitlines()[-25:], sep="\n")
    print(f"{step.name}: exit {status} after {time.monotonic() - started:.0f} s, log in {log}", flush=True)
    return status == "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command behind `make gpu`; 0 if every step passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480, help="seconds in all (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for logs and results (default: runs/gpu-<time>)")
    options = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available():
        print("make gpu: no CUDA device here; `make test` and `make bench` run without one", file=sys.stderr)
        return 2
    major, minor = torch.cuda.get_device_capability()
    output = (options.output or ROOT / "runs" / time.strftime("gpu-%Y%m%d-%H%M%S")).resolve()
    failed = run(steps(sys.executable, f"{major}.{minor}", output), output, options.budget)
    print(f"failed: {', '.join(failed)}" if failed else f"all steps passed; everything is in {output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
