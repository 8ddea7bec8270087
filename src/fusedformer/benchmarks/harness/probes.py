"""What else is measured of a call beside its time: the memory it needs, and how long it keeps the host busy."""

import json
import os
import statistics
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import torch

from fusedformer.benchmarks.harness.timing import Run

HOST_SAMPLES, HOST_CALLS = 7, 10  # fewer calls than a GPU's queue takes: a full queue makes the host wait


def peak_bytes(run: Run, device: torch.device) -> int:
    """Bytes that PyTorch's allocator has handed out at most during a call, beyond those before it.

    A GPU's allocator counts itself. That of the CPU tells PyTorch's profiler of each allocation.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of every start and stop on stderr otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    records = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(accumulate((n_bytes for _, n_bytes in records), initial=0))


def host_seconds(run: Run) -> float:
    """Median seconds of a call on the host of a GPU, which does not wait for its kernels."""
    samples = []
    for _ in range(HOST_SAMPLES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(HOST_CALLS):
            run()
        samples.append((time.perf_counter() - start) / HOST_CALLS)
    torch.cuda.synchronize()
    return statistics.median(samples)
