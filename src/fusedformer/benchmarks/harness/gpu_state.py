"""The clock and power of a GPU between measurements, and whether it was slowed down meanwhile: by NVML or nvidia-smi.

A GPU at its power limit is at the speed it is meant to have, and so counts as fit; one that is too hot, or that the
machine brakes, does not. The bits are those of nvmlClocksEventReasons in NVIDIA's nvml.h.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median

import torch

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
THROTTLED = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | HW_POWER_BRAKE
COOLING_SECONDS = 1.0
QUERY = "--query-gpu=clocks.sm,power.draw,clocks_event_reasons.active"


@dataclass(frozen=True)
class Reading:
    """What a GPU told of itself."""

    sm_clock_mhz: float
    power_w: float
    reasons: int  # why it is slower than it could be, as bits

    @property
    def is_throttled(self) -> bool:
        return bool(self.reasons & THROTTLED)


@dataclass
class GpuMonitor:
    """What watches one GPU (see `timing.Monitor`), and keeps all it read."""

    read: Callable[[], Reading]
    sleep: Callable[[float], None] = time.sleep
    readings: list[Reading] = field(default_factory=list)

    def is_fit(self) -> bool:
        """Take a reading; whether the GPU is not throttled. It is given time to cool down if it is."""
        self.readings.append(self.read())
        if self.readings[-1].is_throttled:
            self.sleep(COOLING_SECONDS)
        return not self.readings[-1].is_throttled

    @property
    def sm_clock_mhz(self) -> float | None:
        """The median after a batch; None if there was none."""
        return median(reading.sm_clock_mhz for reading in self.readings[1:]) if self.readings[1:] else None

    @property
    def power_w(self) -> float | None:
        """The largest after a batch."""
        return max((reading.power_w for reading in self.readings[1:]), default=None)


def monitor_of(device: torch.device) -> GpuMonitor | None:
    """Of a GPU that tells of itself; None of a CPU, or where neither NVML nor nvidia-smi answers."""
    if device.type != "cuda":
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    for reader in (nvml_reader, smi_reader):
        try:
            read = reader(uuid)
            read()
            return GpuMonitor(read)
        except Exception:  # no driver, no permission, a field this GPU does not have: another way may still answer
            continue
    return None


def nvml_reader(uuid: str) -> Callable[[], Reading]:
    """By NVIDIA's Python binding, nvidia-ml-py, in microseconds.

    Raises:
        ModuleNotFoundError: it is not installed.
        pynvml.NVMLError: the driver does not answer.
    """
    if find_spec("pynvml") is None:
        raise ModuleNotFoundError("nvidia-ml-py is not installed")
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def read() -> Reading:
        return Reading(
            sm_clock_mhz=float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            power_w=pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            reasons=int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        )

    return read


def smi_reader(uuid: str) -> Callable[[], Reading]:
    """By the nvidia-smi program, in tenths of a second."""

    def read() -> Reading:
        command = ["nvidia-smi", f"--id={uuid}", QUERY, "--format=csv,noheader,nounits"]
        line = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        clock, power, reasons = (cell.strip() for cell in line.split(","))
        return Reading(float(clock), float(power), int(reasons, 16))

    return read
