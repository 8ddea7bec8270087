"""What measures on a GPU, with fakes of CUDA's graphs, streams and sensors where there is none."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fusedformer.benchmarks.harness import gpu_state, graphs, instruments
from fusedformer.benchmarks.harness.gpu_state import GpuMonitor, Reading
from fusedformer.benchmarks.harness.instruments import EVENTS, GRAPH, Instruments, Prepared, Ready
from fusedformer.benchmarks.harness.probes import peak_bytes
from fusedformer.benchmarks.harness.timing import LEAST_ROUNDS, Plan, Run, WallClock
from fusedformer.benchmarks.machines import H200

CUDA = torch.device("cuda")


class CountingClock:
    """A second a call, whatever it does."""

    def time(self, run: Run, repeats: int) -> float:
        for _ in range(repeats):
            run()
        return 1.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Instruments:
    """A GPU of which nothing is real."""
    monkeypatch.setattr(instruments, "peak_bytes", lambda run, device: 123)
    monkeypatch.setattr(instruments, "host_seconds", lambda run: 4e-6)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Instruments(CUDA, CountingClock())


class TestGraphs:
    @pytest.fixture
    def log(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        log: list[str] = []

        class Graph:
            def replay(self) -> None:
                log.append("replay")

        class Recording:
            def __init__(self, graph: Graph, stream: str) -> None:
                assert stream == "side stream"

            def __enter__(self) -> None:
                log.append("begin")

            def __exit__(self, *error: object) -> None:
                log.append("end")

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Recording)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side stream")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
        return log

    def test_a_graph_holds_a_call_for_each_input_in_turn(self, log: list[str]) -> None:
        replay = graphs.captured(lambda: log.append("call"), calls=4)
        assert log == ["call"] * 4 + ["synchronize", "begin"] + ["call"] * 4 + ["end"]
        replay()
        assert log[-1] == "replay"

    def test_it_is_warm_before(self, log: list[str]) -> None:
        graphs.captured(lambda: log.append("call"), calls=1)
        assert log == ["call"] * 3 + ["synchronize", "begin", "call", "end"]


class TestReady:
    def test_calls_of_a_graph_are_counted_and_warm_ones_too(
        self, gpu: Instruments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        captured: list[tuple[Run, int]] = []

        def capture(run: Run, calls: int) -> Callable[[], None]:
            captured.append((run, calls))
            return lambda: None

        monkeypatch.setattr(instruments, "captured", capture)

        def cold() -> None: ...
        def warm() -> None: ...

        ready = gpu.ready(lambda: Prepared(cold, warm, turns=5))
        assert captured == [(cold, 5), (warm, 5)]
        assert (ready.calls, ready.clock, ready.host_s, ready.peak_memory) == (5, GRAPH, 4e-6, 123)
        fields = gpu.timed({"ours": ready}, Plan(seconds=0.0, min_rounds=LEAST_ROUNDS))["ours"]
        assert fields["samples_s"] == (0.2,) * LEAST_ROUNDS
        assert (fields["time_p50_s"], fields["warm_p50_s"]) == (0.2, 0.2)

    def test_what_no_graph_can_hold_is_launched_by_the_host(
        self, gpu: Instruments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(run: Run, calls: int) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(instruments, "captured", refuse)
        ready = gpu.ready(lambda: Prepared(lambda: None, lambda: None, turns=5))
        assert (ready.calls, ready.clock) == (1, EVENTS)
        assert ready.warm is not None

    def test_a_cpu_has_wall_time_and_no_host_beside_it(self) -> None:
        cpu = Instruments.of(torch.device("cpu"))
        ready = cpu.ready(lambda: Prepared(lambda: torch.zeros(1000), lambda: None, turns=3))
        assert isinstance(cpu.clock, WallClock)
        assert (ready.calls, ready.clock, ready.host_s, ready.warm) == (1, "wall", None, None)
        assert ready.peak_memory >= 4000

    def test_on_a_cpu_a_contender_is_set_up_for_each_half_of_a_round(self) -> None:
        made: list[int] = []

        def prepare() -> Prepared:
            made.append(len(made))
            return Prepared(lambda: None)

        cpu = Instruments(torch.device("cpu"), CountingClock())
        ready = cpu.ready(prepare)
        rounds = cpu.timed({"ours": ready}, Plan(min_rounds=6, max_rounds=6))["ours"]["rounds"]
        assert (rounds, len(made)) == (6, 3 + 2 * 6)


class TestShares:
    def test_rates_are_held_against_the_unit_that_does_them(self) -> None:
        assert Instruments.share(H200, 989.0, "TFLOP/s", "bfloat16") == pytest.approx(1)
        assert Instruments.share(H200, 67.0, "TFLOP/s", "float32") == pytest.approx(1)
        assert Instruments.share(H200, 2400.0, "GB/s", "bfloat16") == pytest.approx(0.5)
        assert Instruments.share(None, 1.0, "GB/s", "float32") is None


class TestMonitor:
    def monitor(self, *readings: Reading) -> tuple[GpuMonitor, list[float]]:
        left, slept = list(readings), list[float]()
        return GpuMonitor(lambda: left.pop(0), sleep=slept.append), slept

    def test_heat_and_brakes_are_unfit_but_not_the_power_limit(self) -> None:
        fit = Reading(1980.0, 300.0, 0x4)
        hot = Reading(1200.0, 650.0, gpu_state.SW_THERMAL)
        braked = Reading(600.0, 700.0, gpu_state.HW_POWER_BRAKE | 0x4)
        monitor, slept = self.monitor(fit, fit, hot, braked)
        assert [monitor.is_fit() for _ in range(4)] == [True, True, False, False]
        assert len(slept) == 2
        assert (monitor.sm_clock_mhz, monitor.power_w) == (1200.0, 700.0)

    def test_a_row_says_clock_power_and_repeated_batches(self, gpu: Instruments) -> None:
        fit, hot = Reading(1980.0, 300.0, 0), Reading(1200.0, 650.0, gpu_state.HW_THERMAL)
        monitor, _ = self.monitor(fit, hot, fit, fit)
        watched = Instruments(CUDA, CountingClock(), monitor=lambda: monitor)
        ready = Ready(lambda: None, None, 1, GRAPH, None, 0)
        fields = watched.timed({"ours": ready}, Plan(seconds=0.0, min_rounds=8, precision=-1.0, batch_rounds=4))["ours"]
        assert (fields["rounds"], fields["repeated_batches"]) == (8, 1)
        assert (fields["sm_clock_mhz"], fields["power_w"]) == (1980.0, 650.0)

    def test_nvml_is_asked_by_uuid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nvml = ModuleType("pynvml")
        nvml.__spec__ = SimpleNamespace(name="pynvml")  # type: ignore[assignment]
        vars(nvml).update(
            NVML_CLOCK_SM=1,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-7": "handle"}[uuid],
            nvmlDeviceGetClockInfo=lambda handle, kind: 1755,
            nvmlDeviceGetPowerUsage=lambda handle: 512_000,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x20,
        )
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="7"))
        monitor = gpu_state.monitor_of(CUDA)
        assert monitor is not None
        assert not GpuMonitor(monitor.read, sleep=lambda seconds: None).is_fit()
        assert monitor.read() == Reading(1755.0, 512.0, 0x20)

    def test_nvidia_smi_is_asked_where_there_is_no_nvml(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []

        def answer(command: list[str], **options: Any) -> SimpleNamespace:
            asked.append(command)
            return SimpleNamespace(stdout="1980, 123.45, 0x0000000000000004\n")

        monkeypatch.setattr(gpu_state, "find_spec", lambda name: None)
        monkeypatch.setattr(gpu_state.subprocess, "run", answer)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="7"))
        monitor = gpu_state.monitor_of(CUDA)
        assert monitor is not None
        assert monitor.read() == Reading(1980.0, 123.45, 4)
        assert "--id=GPU-7" in asked[0]

    def test_a_gpu_that_tells_nothing_is_measured_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu_state, "find_spec", lambda name: None)
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="7"))
        assert gpu_state.monitor_of(CUDA) is None
        assert gpu_state.monitor_of(torch.device("cpu")) is None


def test_the_peak_of_a_cpu_is_what_a_call_holds_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.zeros(100_000)
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(800_000, rel=0.01)
