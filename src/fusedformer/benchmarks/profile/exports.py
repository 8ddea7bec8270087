"""One step as files that other tools open: a timeline for ui.perfetto.dev, and memory for pytorch.org/memory_viz.

trace.json      Chrome's trace event format: each op with its component, work and time, and the memory that is live
memory.pickle   what torch.cuda.memory._snapshot gives, of a device with nothing but this step on it
"""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusedformer.benchmarks.profile.breakdown import LINES, line_of
from fusedformer.benchmarks.profile.cells import Obtained
from fusedformer.benchmarks.profile.family import Array
from fusedformer.benchmarks.profile.tracing import Allocation, Trace

TIMELINE, SNAPSHOT = "trace.json", "memory.pickle"
BASE_ADDRESS = 1 << 40
ALIGNMENT = 512  # bytes, of PyTorch's CUDA allocator


def write_timeline(path: Path, trace: Trace, seconds: Array, obtained: Sequence[Obtained], title: str) -> None:
    """Write the ops of a trace one after the other, each line of a breakdown on a track of its own.

    Args:
        path: of the file.
        trace: of a whole step.
        seconds: of each of its ops.
        obtained: how, of each.
        title: what ran, or would.
    """
    ways = ", ".join(dict.fromkeys(obtained))
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": f"{title}; times {ways}"}},
        *(
            {"ph": "M", "pid": 0, "tid": LINES.index(line), "name": "thread_name", "args": {"name": line}}
            for line in dict.fromkeys(map(line_of, trace.ops))
        ),
    ]
    now = 0.0
    for op, duration, way, live in zip(trace.ops, seconds, obtained, trace.live_bytes(), strict=True):
        work = {"phase": op.phase, "module": ".".join(op.path), "FLOPs": op.work.flops, "bytes": op.work.n_bytes}
        events.append({
            "ph": "X", "pid": 0, "tid": LINES.index(line_of(op)), "name": op.name, "cat": op.component,
            "ts": now * 1e6, "dur": duration * 1e6, "args": {**work, "obtained": way},
        })  # fmt: skip
        events.append({"ph": "C", "pid": 0, "name": "live memory (B)", "ts": now * 1e6, "args": {"B": live}})
        now += float(duration)
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def write_snapshot(path: Path, trace: Trace, seconds: Array) -> None:
    """Write the allocations of a trace in the order of their births and deaths; addresses are made up."""
    starts = [0, *(int(1e6 * float(seconds[: index + 1].sum())) for index in range(len(seconds)))]
    events: list[tuple[int, int, dict[str, Any]]] = []
    address = BASE_ADDRESS
    for allocation in trace.allocations:
        entry = {"addr": address, "size": allocation.n_bytes, "stream": 0, "frames": _frames(allocation)}
        address += -(-allocation.n_bytes // ALIGNMENT) * ALIGNMENT
        born = max(0, allocation.born)
        events.append((born, 1, {"action": "alloc", **entry, "time_us": starts[born]}))
        if allocation.died is not None:
            freed = {**entry, "time_us": starts[min(allocation.died, len(starts) - 1)]}
            events.append((allocation.died, 0, {"action": "free_requested", **freed}))
            events.append((allocation.died, 0, {"action": "free_completed", **freed}))
    ordered = [event for _, _, event in sorted(events, key=lambda item: item[:2])]
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [ordered], "allocator_settings": {}}))


def _frames(allocation: Allocation) -> list[dict[str, Any]]:
    """Where it was allocated: as a stack, the innermost first."""
    names = [allocation.what or allocation.kind, allocation.kind, *reversed(allocation.path)]
    return [{"name": name, "filename": "", "line": 0} for name in dict.fromkeys(names)]
