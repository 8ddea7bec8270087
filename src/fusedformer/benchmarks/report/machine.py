"""What a run was made on, which implementation each op uses here, and why the others are not.

Versions, processor, threads, GPUs; no names of machines, users or folders.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fusedformer import build
from fusedformer.benchmarks.harness.op import missing_kernel
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.report.rows import without_folders
from fusedformer.benchmarks.report.tables import Table, environment_table
from fusedformer.benchmarks.static.collect import TRITON_OPS
from fusedformer.drop_in import registry, torch_hook
from fusedformer.kernels import eager, emulation, library
from fusedformer.kernels.attention.hopper import dispatch

ROOT = Path(__file__).parents[4]
PACKAGES = ("fusedformer", "torch", "triton", "numpy", "matplotlib")
REFERENCE = "plain PyTorch"
EXTRAS = {"matplotlib": "bench", "safetensors": "models", "tokenizers": "models", "gguf": "models", "onnx": "models"}


def collect() -> dict[str, Any]:
    """Everything about this machine and process that explains a figure, ready for JSON."""
    return {
        "system": f"{platform.system()} {'.'.join(re.findall(r'[0-9]+', platform.release())[:2])}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "revision": _revision(),
        "cuda": torch.version.cuda,
        "driver": _first("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _first(build.find_nvcc(), "--version", pattern=r"V(\d[\d.]+)"),
        "g++": _first("g++", "-dumpfullversion"),
        "extension": without_folders(library.extension_status()),
        "eager": without_folders(eager.status()),
        "implementations": {name: {"cpu": _on_cpu(name), "cuda": _on_cuda(name)} for name in OPS},
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def doctor() -> list[Table]:
    """Versions and hardware, implementations, other libraries' models, tools."""
    return [environment_table(collect()), implementation_table(), drop_in_table(), tool_table()]


def implementation_table() -> Table:
    """What computes each op for CPU tensors, for CUDA tensors, and in the emulated world."""
    lines = [(name, _on_cpu(name), _on_cuda(name), _emulated(name)) for name in OPS]
    notes = [f"CUDA extension: {library.extension_status()}; calls past the dispatcher: {eager.status()}."]
    notes.append(f"Attention on sm_{dispatch.ARCH} in Gluon, the Hopper tier: {dispatch.status()}.")
    if not torch.cuda.is_available():
        notes.append("No CUDA device here: the CUDA column is what one would get.")
    return Table("Implementations", ("op", "CPU", "CUDA", "CPU with FUSEDFORMER_EMULATE=1"), lines, notes)


def drop_in_table() -> Table:
    """Libraries whose models are served: their version here, the one that `patch` knows, and the other ways."""
    lines = [("torch", _version("torch"), "any", "register_torch")]
    lines += [(name, _version(name), known, way) for name, known, way in registry.KNOWN_VERSIONS]
    notes = ["A module whose forward says something else than in the version known is left, as `patch` reports."]
    notes.append(f"register_torch: {'on' if torch_hook.is_registered() else 'off'} in this process.")
    return Table("Drop-in", ("library", "here", "known to patch", "other ways"), lines, notes)


def tool_table() -> Table:
    """Compilers and optional packages: what each is for, and whether it is here."""
    tools = {
        "nvcc": (build.find_nvcc() is not None, "the CUDA extension, and csrc in the static world"),
        "g++": (shutil.which("g++") is not None, "csrc in the emulated world"),
    }
    tools |= {name: (find_spec(name) is not None, f"the extra [{extra}]") for name, extra in EXTRAS.items()}
    lines = [(name, "found" if found else "missing", purpose) for name, (found, purpose) in tools.items()]
    return Table("Tools", ("tool", "here", "for"), lines)


def _revision() -> str:
    """The commit of the checkout that the package runs from, with + if it was changed since; empty outside one."""
    if not (ROOT / ".git").exists():
        return ""
    commit = _first("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changes = _first("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if changes else commit


def _first(program: str | os.PathLike[str] | None, *arguments: str, pattern: str = r"(.+)") -> str:
    """What `pattern` finds first in the output of a program; empty where that is not here or does not answer."""
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(pattern, done.stdout)
    return found[1].strip() if found else ""


def _cores() -> int:
    """Those that this process may use, where the system tells (macOS does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    models = [line for line in _read(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.machine()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
    }


def _on_cpu(op: str) -> str:
    return _emulated(op) if emulation.is_active() else REFERENCE


def _on_cuda(op: str) -> str:
    """What PyTorch's dispatcher holds, which is what a call gets."""
    if not missing_kernel(op, "cuda"):
        return "Triton kernel" if op in TRITON_OPS else "CUDA extension"
    return f"{REFERENCE}, for want of {'Triton' if op in TRITON_OPS else 'the CUDA extension'}"


def _emulated(op: str) -> str:
    if op in TRITON_OPS:
        return "Triton's interpreter" if find_spec("triton") else "nothing: Triton is not installed"
    return "csrc built by g++" if shutil.which("g++") else "nothing: no g++"
