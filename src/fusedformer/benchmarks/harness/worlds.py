"""The error of every op against float64, in every world that this machine has.

The emulated world is chosen before import, so it has a process of its own,
`python -m fusedformer.benchmarks.harness.worlds`, which prints one row per line, as JSON.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO

import torch

from fusedformer.benchmarks.harness.comparison import OURS, judge
from fusedformer.benchmarks.harness.op import WORLDS, Case, Op, Problem
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.report.rows import Row
from fusedformer.kernels import emulation

DIRECTION = "forward + backward"
EMULATED = "emulated"


def error_rows(op: Op, device: torch.device, seed: int) -> Iterator[Row]:
    """One row per case: the largest share of the error budget over the output and all gradients."""
    for case in op.error_cases:
        yield _error_row(op, case, torch.Generator(device).manual_seed(seed))


def emulated_error_rows(ops: Sequence[Op], seed: int, timeout_s: float) -> Iterator[Row]:
    """The same rows from the emulated world; an op that did not finish there is a skipped row with the reason."""
    finished: Counter[str] = Counter()
    with tempfile.TemporaryFile("w+") as stderr:
        with _emulated_process(ops, seed, stderr) as process, _killed_after(timeout_s, process) as timed_out:
            for line in process.stdout or ():
                row = Row.from_dict(json.loads(line))
                finished[row.subject] += 1
                yield row
        stderr.seek(0)
        last_words = (stderr.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    reason = f"not finished after {timeout_s:.0f} s" if timed_out.is_set() else last_words
    for op in ops:
        if finished[op.name] < len(op.error_cases):
            yield skipped_row(op, EMULATED, reason)


def skipped_row(op: Op, world: str, reason: str) -> Row:
    """The row of an op in a world that this machine does not have."""
    return Row(
        kind="error", subject=op.name, world=world, direction=DIRECTION, contender=OURS, status="skipped", reason=reason
    )


def _emulated_process(ops: Sequence[Op], seed: int, stderr: IO[str]) -> subprocess.Popen[str]:
    """In a process group of its own, so that a compiler which it started ends with it."""
    command = [sys.executable, "-m", "fusedformer.benchmarks.harness.worlds", str(seed), *(op.name for op in ops)]
    environment = {**os.environ, "FUSEDFORMER_EMULATE": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    )


@contextlib.contextmanager
def _killed_after(timeout_s: float, process: subprocess.Popen[str]) -> Iterator[threading.Event]:
    """End the process group after that time, or when the block does; the event tells whether time ran out."""
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, expire)
    timer.start()
    try:
        yield timed_out
    finally:
        timer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _error_row(op: Op, case: Case, generator: torch.Generator) -> Row:
    verdict = judge(partial(Problem.make(op, case, generator).error_ratios, op.contenders[OURS]))
    return Row(
        kind="error",
        subject=op.name,
        case=str(case),
        dtype=case.dtype_name,
        world=EMULATED if emulation.is_active() else WORLDS[generator.device.type],
        direction=DIRECTION,
        contender=OURS,
        **vars(verdict),
    )


def main(seed: str, *op_names: str) -> None:
    """Print the rows of these ops in the world that this process is in."""
    for name in op_names:
        for row in error_rows(OPS[name], torch.device("cpu"), int(seed)):
            print(json.dumps(row.to_dict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
