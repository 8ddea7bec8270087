"""A step as it really runs: the time of each op, and what PyTorch allocates.

On a GPU each op is between two CUDA events. The host would not keep up with small kernels, so it gets a head start: the
device spins while the step is queued, and the events see kernels back to back. On a CPU it is wall time.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusedformer.benchmarks.harness.comparison import describe
from fusedformer.benchmarks.harness.probes import peak_bytes
from fusedformer.benchmarks.profile.cells import MEASURED, PREDICTED, Obtained
from fusedformer.benchmarks.profile.contenders import Attention
from fusedformer.benchmarks.profile.family import SHALLOW, Array, Sheet
from fusedformer.benchmarks.profile.profiler import Setting
from fusedformer.benchmarks.profile.steps import NobodyObserves, Step, make_step
from fusedformer.benchmarks.profile.subjects import build_on
from fusedformer.benchmarks.profile.tracing import BLOCKS, OpClock, Trace, TracedOp, Tracer

SECONDS = 2.0  # of repeats for one step
MAX_REPEATS = 20
SPIN_CYCLES_PER_SECOND = 2e9  # at least the clock of any GPU


class HostClock:
    """Wall time: ops of a CPU are done when they return."""

    def mark(self) -> float:
        """Now, in seconds."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Between two marks."""
        return end - start


class EventClock:
    """CUDA events on the current stream."""

    def mark(self) -> torch.cuda.Event:
        """When the device gets there."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Between two marks; waits for the second."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class NotMeasuredError(RuntimeError):
    """The step cannot run here; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """A step that ran.

    Attributes:
        ops: that ran.
        seconds: of each of them, medians over repeats.
        peak: bytes that PyTorch had allocated at most, of all blocks; None where only some ran.
        n_blocks: that ran; None for all.
        repeats: of the step.
    """

    ops: Sequence[TracedOp]
    seconds: Array
    peak: int | None
    n_blocks: int | None
    repeats: int

    def seconds_of(self, sheet: Sheet) -> Array:
        """Seconds of each op of a sheet: those of the next op of its name and place that ran.

        A sheet may stand for more blocks than ran: an op of any inner block takes what it took in the middle one. Ops
        that are not in a block, such as the optimizer's, take as much longer as they move more bytes.

        Raises:
            NotMeasuredError: none such ran.
        """
        ran: dict[tuple[Any, ...], list[int]] = {}
        for index, op in enumerate(self.ops):
            ran.setdefault((op.name, op.phase, op.path), []).append(index)
        seen: Counter[tuple[Any, ...]] = Counter()
        found = np.zeros(len(sheet.ops))
        for index, op in enumerate(sheet.ops):
            key = (op.name, op.phase, op.path)
            places = ran.get(key) or ran.get((op.name, op.phase, _in_middle_block(op.path)))
            if places is None or seen[key] >= len(places):
                raise NotMeasuredError(f"{op.name} in {'.'.join(op.path) or 'no module'} did not run")
            place = places[seen[key]]
            seen[key] += 1
            n_bytes = self.ops[place].work.n_bytes
            scale = sheet.n_bytes[index] / n_bytes if op.block is None and n_bytes else 1.0
            found[index] = self.seconds[place] * scale
        return found

    def obtained_of(self, sheet: Sheet) -> list[Obtained]:
        """How each of these seconds was: those of blocks that did not run, and of what they make longer, are not
        measured.
        """
        if self.n_blocks is None:
            return [MEASURED] * len(sheet.ops)
        ran = {op.path for op in self.ops if op.block is not None}
        return [MEASURED if op.path in ran else PREDICTED for op in sheet.ops]


def measure(setting: Setting, context: int, sheet: Sheet, device: torch.device) -> Measurement:
    """Run the step of a context and time its ops.

    Where not all blocks fit into the free memory, SHALLOW of them run, and the middle one counts for the others.

    Args:
        setting: what runs.
        context: its length.
        sheet: the same step as it was traced without data.
        device: a CUDA device or the CPU.

    Raises:
        NotMeasuredError: it does not fit into the memory, or fails.
    """
    n_blocks = _depth_that_fits(setting, context, sheet, free_bytes(device))
    try:
        step = make_step(
            build_on(device, setting.subject, context, n_blocks), setting.mode, context, device, setting.changes
        )
        peak = allocated_peak(step, setting, device) if n_blocks is None else None
        traces = _timed_traces(step, setting, device)
    except Exception as error:  # running out of memory, for one, is a result
        raise NotMeasuredError(describe(error)) from error
    seconds = np.median([[op.seconds or 0.0 for op in trace.ops] for trace in traces], axis=0)
    return Measurement(traces[0].ops, seconds, peak, n_blocks, len(traces))


def free_bytes(device: torch.device) -> int:
    """Memory that is free now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        available = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
        return int(available[0].split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def allocated_peak(step: Step, setting: Setting, device: torch.device) -> int:
    """Bytes that PyTorch's allocator has handed out at most while the step runs, what it holds before included."""
    return peak_bytes(partial(_run, step, setting, device), device) + _held_bytes(step)


def _held_bytes(step: Step) -> int:
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for held in step.held.values() for x in held
    }
    return sum(storages.values())


def _run(step: Step, setting: Setting, device: torch.device) -> None:
    observer = NobodyObserves()
    with Attention(setting.attention, device.type, observer.scope):
        step.run(observer)


def _depth_that_fits(setting: Setting, context: int, sheet: Sheet, free: int) -> int | None:
    if sheet.peak <= free:
        return None
    n_layers = setting.subject.n_layers
    needed = sheet.peak
    if n_layers is not None and n_layers > SHALLOW:
        needed = max(setting.trace(context, SHALLOW).live_bytes())
        if needed <= free:
            return SHALLOW
    raise NotMeasuredError(f"needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free")


def _timed_traces(step: Step, setting: Setting, device: torch.device) -> list[Trace]:
    """Traces of the same step, again and again, after one that compiles and allocates."""
    clock: OpClock = EventClock() if device.type == "cuda" else HostClock()

    def traced() -> Trace:
        with Tracer(step.model, clock=clock, device_type=device.type) as tracer:
            for kind, held in step.held.items():
                tracer.hold(kind, held)
            with Attention(setting.attention, device.type, tracer.scope):
                step.run(tracer)
        return tracer.trace

    host_seconds = _seconds_of(traced, device)
    traces: list[Trace] = []
    spent = 0.0
    while not traces or (spent < SECONDS and len(traces) < MAX_REPEATS):
        if device.type == "cuda":
            torch.cuda._sleep(int(host_seconds * SPIN_CYCLES_PER_SECOND))
        started = time.monotonic()
        traces.append(traced())
        spent += time.monotonic() - started
    return traces


def _seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Of a second call: what the host takes, and the device where it takes longer."""
    for _ in range(2):
        started = time.monotonic()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.monotonic() - started


def _in_middle_block(path: tuple[str, ...]) -> tuple[str, ...]:
    if BLOCKS not in path:
        return path
    place = path.index(BLOCKS) + 1
    return (*path[:place], str(SHALLOW // 2), *path[place + 1 :])
