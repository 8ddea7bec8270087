"""What machines can do at most: from their data sheets, or measured here by a large matrix product and a large copy.

Sources: NVIDIA's data sheets of the A100 80GB SXM (2021), H100 SXM (2023), H200 SXM (2024) and HGX B200 (2025): rates
without sparsity. Memory is what nvidia-smi reports, which is more than the decimal GB of a data sheet.
"""

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fusedformer.benchmarks.harness.timing import Clock, CudaClock, WallClock

COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
FLOAT8_ARCH = 89  # the first compute capability whose matrix units multiply float8
MIB = 2**20
BUSY = 0.5  # of the cores
PROBE_SECONDS = 0.3  # of each probe


@dataclass(frozen=True)
class Machine:
    """Peaks of one device.

    Attributes:
        name: as PyTorch calls it.
        matrix_flops: products of 16-bit numbers, FLOP/s.
        vector_flops: everything else in float32, FLOP/s.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        arch: compute capability, 90 for 9.0; None of a CPU.
        compute_share: of each rate of FLOP/s, what a model of time may count on.
        memory_share: of `bandwidth`, likewise.
        source: where the figures are from.
        float8_flops: products of 8-bit numbers, FLOP/s; None where they are computed as those of 16 bits.
    """

    name: str
    matrix_flops: float
    vector_flops: float
    bandwidth: float
    memory: float
    arch: int | None
    compute_share: float = 0.7
    memory_share: float = 0.9
    source: str = "data sheet"
    float8_flops: float | None = None

    def product_flops(self, dtype: str) -> float:
        """The peak of products of numbers of this dtype, FLOP/s."""
        if dtype.startswith("float8"):
            return self.float8_flops or self.matrix_flops
        return self.matrix_flops if dtype in ("float16", "bfloat16") else self.vector_flops


# The shares of a data sheet's peaks are assumptions, not measurements: large products are held back by power, copies by
# refresh and turnaround of DRAM.
A100 = Machine("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12, 2.039e12, 81_920 * MIB, 80)
H100 = Machine("NVIDIA H100 80GB HBM3", 989e12, 67e12, 3.35e12, 81_559 * MIB, 90, float8_flops=1979e12)
H200 = Machine("NVIDIA H200", 989e12, 67e12, 4.8e12, 143_771 * MIB, 90, float8_flops=1979e12)
B200 = Machine("NVIDIA B200", 2250e12, 75e12, 8e12, 183_359 * MIB, 100, float8_flops=4500e12)
DATASHEETS = {machine.name: machine for machine in (A100, H100, H200, B200)}


def datasheet(name: str) -> Machine | None:
    """The data sheet of a device by PyTorch's name for it; None if there is none here."""
    return DATASHEETS.get(name)


def measured(device: torch.device) -> Machine:
    """The peaks of this machine: large products in bfloat16, float32 and float8, and a large copy, timed now."""
    clock: Clock = CudaClock() if device.type == "cuda" else WallClock()
    size = MATMUL_SIZE[device.type]
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(size, size, device=device, dtype=dtype)
        rates[dtype] = 2 * size**3 / _best_seconds(clock, lambda x=x: x @ x)  # type: ignore[misc]
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / _best_seconds(clock, lambda: target.copy_(source))
    return Machine(
        name=device_name(device),
        matrix_flops=rates[torch.bfloat16],
        vector_flops=rates[torch.float32],
        bandwidth=copied,
        memory=memory_of(device),
        arch=arch_of(device),
        compute_share=1.0,
        memory_share=1.0,
        source="measured here",
        float8_flops=_float8_flops(clock, device, size),
    )


def _float8_flops(clock: Clock, device: torch.device, size: int) -> float | None:
    """FLOP/s of a product in float8; None where a device's matrix units have none, or PyTorch does not call it."""
    if (arch_of(device) or 0) < FLOAT8_ARCH:
        return None
    x = torch.randn(size, size, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    product = functools.partial(torch._scaled_mm, x, x.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    try:
        return 2 * size**3 / _best_seconds(clock, product)
    except RuntimeError:  # a build of cuBLAS that does not know this GPU
        return None


def unmeasured(device: torch.device) -> Machine:
    """The data sheet of the GPU that is here, with the memory that it has; of an H200 where there is none."""
    if device.type != "cuda":
        return H200
    found = datasheet(device_name(device))
    return measured(device) if found is None else dataclasses.replace(found, memory=memory_of(device))


def device_name(device: torch.device) -> str:
    """As PyTorch calls a GPU; the processor's architecture of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def memory_of(device: torch.device) -> float:
    """Bytes of memory: of the GPU, or of this machine."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def load_by_others(device: torch.device) -> str:
    """How busy the cores are before a CPU is measured; empty where that is little, or a GPU is measured."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if device.type == "cpu" and load > BUSY * cores else ""


def arch_of(device: torch.device) -> int | None:
    """Compute capability, 90 for 9.0; None of a CPU."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _best_seconds(clock: Clock, run: Callable[[], object]) -> float:
    """The least that a call took within the probe's time: a peak is what is reached undisturbed."""
    clock.time(run, 1)
    samples: list[float] = []
    deadline = time.monotonic() + PROBE_SECONDS
    while not samples or time.monotonic() < deadline:
        samples.append(clock.time(run, 3))
    return min(samples)
