"""The error of every op against float64, in every world that this machine has.

The emulated world is chosen before import, so it has a process of its own,
`python -m fusedformer.benchmarks.harness.worlds`, which prints one row per line, as JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO

import torch

from fusedformer.benchmarks.harness import processes
from fusedformer.benchmarks.harness.comparison import OURS, Verdict, judge
from fusedformer.benchmarks.harness.op import BOTH, WORLDS, Case, Op, Problem, missing_kernel
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.report.rows import Row, Status, without_folders
from fusedformer.kernels import emulation

EMULATED = "emulated"


def error_rows(op: Op, device: torch.device, seed: int) -> Iterator[Row]:
    """One row per case: the largest share of the error budget over the output and all gradients."""
    for case in op.error_cases:
        yield _error_row(op, case, torch.Generator(device).manual_seed(seed))


def emulated_error_rows(ops: Sequence[Op], seed: int, timeout_s: float) -> Iterator[Row]:
    """The same rows from the emulated world.

    An op whose case ends the process has a failed row that says how, and the ops after it get another process; what
    did not finish in time is skipped.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(ops)
    while waiting:
        finished: Counter[str] = Counter()
        with tempfile.TemporaryFile("w+") as stderr:
            left = max(0.0, deadline - time.monotonic())
            with _emulated_process(waiting, seed, stderr) as process, _ended_after(left, process) as timed_out:
                for line in process.stdout or ():
                    if not line.endswith("\n"):  # killed while it printed
                        break
                    row = Row.from_dict(json.loads(line))
                    finished[row.subject] += 1
                    yield row
                status = process.wait()
            last_words = _last_line(stderr)
        waiting = [op for op in waiting if finished[op.name] < len(op.error_cases)]
        if timed_out.is_set():
            reason = f"not finished after {timeout_s:.3g} s"
            yield from (row_without_figure(op, EMULATED, "skipped", reason) for op in waiting)
            return
        if waiting:
            reason = ": ".join(filter(None, (f"the emulation {processes.ending(status)}", last_words)))
            op = waiting.pop(0)
            case = op.error_cases[finished[op.name]]
            yield replace(row_without_figure(op, EMULATED, "failed", reason), case=str(case), dtype=case.dtype_name)


def row_without_figure(op: Op, world: str, status: Status, reason: str) -> Row:
    """The row of an op that a world says nothing more of."""
    return Row(
        kind="error",
        subject=op.name,
        world=world,
        direction=BOTH,
        contender=OURS,
        status=status,
        reason=without_folders(reason),
    )


def _last_line(stream: IO[str]) -> str:
    stream.seek(0)
    return (stream.read().strip().splitlines() or [""])[-1]


def _emulated_process(ops: Sequence[Op], seed: int, stderr: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fusedformer.benchmarks.harness.worlds", str(seed), *(op.name for op in ops)]
    environment = {**os.environ, "FUSEDFORMER_EMULATE": "1"}
    return processes.start(command, env=environment, stdout=subprocess.PIPE, stderr=stderr)


@contextlib.contextmanager
def _ended_after(timeout_s: float, process: subprocess.Popen[str]) -> Iterator[threading.Event]:
    """End the process after that time, or when the block does; the event tells whether time ran out."""
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        processes.kill(process)

    timer = threading.Timer(timeout_s, expire)
    timer.start()
    try:
        yield timed_out
    finally:
        timer.cancel()
        processes.kill(process)


def _error_row(op: Op, case: Case, generator: torch.Generator) -> Row:
    device_type = generator.device.type
    if reason := missing_kernel(op.name, device_type):
        verdict = Verdict("missing", reason)
    else:
        verdict = judge(lambda: Problem.make(op, case, generator).error_ratios(op.contenders[OURS]))
    return Row(
        kind="error",
        subject=op.name,
        case=str(case),
        dtype=case.dtype_name,
        world=EMULATED if emulation.is_active() else WORLDS[device_type],
        direction=BOTH,
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
