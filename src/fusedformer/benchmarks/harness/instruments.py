"""What measures a call on one device: its clock, its peaks, and what watches it.

On a GPU the time is that of CUDA-graph replays between events, over inputs that take turns so that the L2 cache has
lost them; a call that no graph can hold is launched from the host, between the same events. On a CPU it is wall time,
and contenders are set up again and again: see timing.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from fusedformer.benchmarks.harness import timing
from fusedformer.benchmarks.harness.gpu_state import GpuMonitor, monitor_of
from fusedformer.benchmarks.harness.graphs import captured
from fusedformer.benchmarks.harness.probes import host_seconds, peak_bytes
from fusedformer.benchmarks.harness.timing import Clock, CudaClock, Plan, Renewed, Run, WallClock
from fusedformer.benchmarks.machines import Machine

WALL, EVENTS, GRAPH = "wall", "events", "graph"
WARM_SAMPLES = 7


class Prepared(NamedTuple):
    """What a contender sets up to be timed.

    Attributes:
        run: one call, each on the next of several inputs.
        warm: one call, always on the same inputs; None where `run` has but one, or is timed warm anyway.
        turns: calls of `run` until the same inputs come again.
    """

    run: Run
    warm: Run | None = None
    turns: int = 1


class Ready(NamedTuple):
    """What is timed, and what is known of it before.

    Attributes:
        run: makes `calls` calls; on a CPU set up anew for each half of a round.
        warm: likewise, always on the same inputs; None where that is not asked.
        calls: in one `run`.
        clock: WALL, EVENTS or GRAPH.
        host_s: seconds of a call on the host; None on a CPU, where they are all of it.
        peak_memory: bytes.
    """

    run: Run | Renewed
    warm: Run | None
    calls: int
    clock: str
    host_s: float | None
    peak_memory: int

    def fields(self) -> dict[str, Any]:
        """Of a row."""
        return {"clock": self.clock, "host_p50_s": self.host_s, "peak_memory_bytes": float(self.peak_memory)}


@dataclass(frozen=True)
class Instruments:
    """Of one device.

    Attributes:
        device: what is measured.
        clock: takes the time there.
        peaks: what the device reached in this run; None where that is not known.
        sheet: what its data sheet promises; None where there is none.
        monitor: makes what watches the device during one comparison; None where it tells nothing.
    """

    device: torch.device
    clock: Clock
    peaks: Machine | None = None
    sheet: Machine | None = None
    monitor: Callable[[], GpuMonitor | None] = lambda: None

    @classmethod
    def of(cls, device: torch.device, peaks: Machine | None = None, sheet: Machine | None = None) -> "Instruments":
        """Those of a device; a GPU's calls have to be made on a stream that is not the default one."""
        clock: Clock = CudaClock() if device.type == "cuda" else WallClock()
        return cls(device, clock, peaks, sheet, partial(monitor_of, device))

    @property
    def machines(self) -> tuple[Machine | None, Machine | None]:
        """Measured peaks and data sheet."""
        return self.peaks, self.sheet

    @staticmethod
    def share(machine: Machine | None, rate: float, unit: str, dtype: str) -> float | None:
        """`rate` over what the machine reaches with that dtype."""
        if machine is None:
            return None
        if unit == "GB/s":
            return rate * 1e9 / machine.bandwidth
        return rate * 1e12 / machine.product_flops(dtype)

    def ready(self, prepare: Callable[[], Prepared]) -> Ready:
        """Call it once, which meets the errors of its kernels, and find out how it can be timed best."""
        prepared = prepare()
        self.clock.time(prepared.run, 1)  # which waits for a GPU
        peak = peak_bytes(prepared.run, self.device)
        if self.device.type != "cuda":
            return Ready(Renewed(lambda: prepare().run), None, 1, WALL, None, peak)
        host = host_seconds(prepared.run)
        turns = prepared.turns
        try:
            run = captured(prepared.run, turns)
            warm = prepared.warm and captured(prepared.warm, turns)
            return Ready(run, warm, turns, GRAPH, host, peak)
        except Exception:  # whatever keeps it out of a graph, the host can still launch it
            self.release()
            return Ready(prepared.run, prepared.warm, 1, EVENTS, host, peak)

    def timed(self, ready: Mapping[str, Ready], plan: Plan) -> dict[str, dict[str, Any]]:
        """Fields of each row.

        Raises:
            TooSlowError: as timing.measure.
            RunError: as timing.measure.
        """
        monitor = self.monitor()
        runs = {name: contender.run for name, contender in ready.items()}
        samples, repeated = timing.measure(runs, self.clock, plan, monitor)
        found = {}
        for name, contender in ready.items():
            seconds = [value / contender.calls for value in samples[name]]
            p20, p50, p80 = (timing.percentile(seconds, share) for share in (0.2, 0.5, 0.8))
            found[name] = {
                "time_p20_s": p20,
                "time_p50_s": p50,
                "time_p80_s": p80,
                "warm_p50_s": self._warm_seconds(contender, plan),
                "sm_clock_mhz": monitor and monitor.sm_clock_mhz,
                "power_w": monitor and monitor.power_w,
                "repeated_batches": repeated,
                "rounds": len(seconds),
                "samples_s": tuple(seconds),
            }
        return found

    def _warm_seconds(self, contender: Ready, plan: Plan) -> float | None:
        if contender.warm is None:
            return None
        repeats = timing.repeats_of(partial(self.clock.time, contender.warm), plan.sample_seconds)
        samples = [self.clock.time(contender.warm, repeats) for _ in range(WARM_SAMPLES)]
        return timing.percentile(samples, 0.5) / contender.calls

    def release(self) -> None:
        """Give memory that failed work has left back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
