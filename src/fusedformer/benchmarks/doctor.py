"""`fusedformer doctor`: what is installed, which implementation each op uses, and why the others are not there."""

import shutil
from importlib.util import find_spec

import torch

from fusedformer import build
from fusedformer.benchmarks import environment
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.static import TRITON_OPS
from fusedformer.benchmarks.tables import Table, environment_table
from fusedformer.kernels import emulation, library

REFERENCE = "plain PyTorch"
EXTRAS = {"matplotlib": "bench", "safetensors": "models", "tokenizers": "models"}


def report() -> list[Table]:
    """Versions and hardware, implementations, tools."""
    return [environment_table(environment.collect()), implementation_table(), tool_table()]


def implementation_table() -> Table:
    """What computes each op for CPU tensors, for CUDA tensors, and in the emulated world."""
    lines = [(name, _on_cpu(name), _on_cuda(name), _emulated(name)) for name in OPS]
    notes = [f"CUDA extension: {library.extension_status()}."]
    if not torch.cuda.is_available():
        notes.append("No CUDA device here: the CUDA column is what one would get.")
    return Table("Implementations", ("op", "CPU", "CUDA", "CPU with FUSEDFORMER_EMULATE=1"), lines, notes)


def tool_table() -> Table:
    """Compilers and optional packages: what each is for, and whether it is here."""
    tools = {
        "nvcc": (build.find_nvcc() is not None, "the CUDA extension, and csrc in the static world"),
        "g++": (shutil.which("g++") is not None, "csrc in the emulated world"),
    }
    tools |= {name: (find_spec(name) is not None, f"the extra [{extra}]") for name, extra in EXTRAS.items()}
    lines = [(name, "found" if found else "missing", purpose) for name, (found, purpose) in tools.items()]
    return Table("Tools", ("tool", "here", "for"), lines)


def _on_cpu(op: str) -> str:
    return _emulated(op) if emulation.is_active() else REFERENCE


def _on_cuda(op: str) -> str:
    """What PyTorch's dispatcher holds, which is what a call gets."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{library.NAMESPACE}::{op}_fwd", "CUDA"):
        return "Triton kernel" if op in TRITON_OPS else "CUDA extension"
    return f"{REFERENCE}, for want of {'Triton' if op in TRITON_OPS else 'the CUDA extension'}"


def _emulated(op: str) -> str:
    if op in TRITON_OPS:
        return "Triton's interpreter" if find_spec("triton") else "nothing: Triton is not installed"
    return "csrc built by g++" if shutil.which("g++") else "nothing: no g++"
