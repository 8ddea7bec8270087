"""The .cu kernels in the static world: each file of csrc/ compiled by nvcc, every kernel in it one row."""

import re
import tempfile
from pathlib import Path

from fusedformer import build
from fusedformer.benchmarks.report.rows import without_folders
from fusedformer.benchmarks.static import sass, stores
from fusedformer.benchmarks.static.row import StaticRow, measured

# Kernels that read and write whole tensors; others gather partial results, or serve rows that allow no vectors.
_MAIN_PATH = ("_fwd_kernel", "_bwd_kernel")
_SINGLE = "1"  # the last template argument of their variants that take one element at a time
_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
_HELD = re.compile(r"RowShape<\w+, [1-9]")  # in the variants that keep a row in registers, and have no loop over it
_BYTES = {"float": 4, "__half": 2, "__nv_bfloat16": 2}  # of an element, whose type is a kernel's first template type
_OUTPUTS = {"glu_bwd_kernel": 2, "norm_fwd_kernel": 2, "norm_bwd_kernel": 2}  # tensors stored, at most; 1 elsewhere
# Of these, kernels that write no tensor of rows.
_REDUCTIONS = ("cross_entropy_fwd_kernel",)


def unavailable() -> str:
    """Why no .cu file can be compiled here; empty if it can."""
    if build.find_nvcc() is None:
        return "no nvcc: not in $CUDA_HOME/bin, not on $PATH, not from `pip install 'fusedformer[static]'`"
    return "" if sass.find_nvdisasm() else "no nvdisasm: neither in the triton package nor on $PATH"


def sources(source: Path) -> list[Path]:
    """A .cu file and the headers of its folder that it includes, directly or not."""
    found = [source]
    for path in found:
        included = [source.parent / name for name in _INCLUDE.findall(path.read_text(encoding="utf-8"))]
        found += [path for path in included if path.is_file() and path not in found]
    return found


def compile_source(source: Path, arch: int) -> list[StaticRow]:
    """A row for every kernel of one .cu file; a single one with the error if it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        try:
            resources = build.compile_cubin(source, arch, cubin)
        except build.BuildError as error:
            return [StaticRow(op=source.stem, kernel=source.name, arch=arch, error=without_folders(str(error)))]
        disassembly = sass.disassemble(cubin)
    mixes = sass.instruction_mixes(disassembly)
    passes = stores.passes(disassembly)
    # ptxas names the kernels demangled, the disassembly does not.
    mixes = dict(zip(build.demangle(list(mixes)), mixes.values(), strict=True))
    passes = dict(zip(build.demangle(list(passes)), passes.values(), strict=True))
    rows = []
    for kernel in resources:
        name, _, arguments = kernel.name.removesuffix(">").partition("<")
        figures = measured(kernel, mixes[kernel.name])
        types = arguments.split(", ")
        vectorized = name.endswith(_MAIN_PATH) and types[-1] != _SINGLE
        if vectorized and passes[kernel.name] and not _HELD.search(arguments):
            cost = stores.instructions_per_16_bytes(passes[kernel.name], _OUTPUTS.get(name, 1))
            figures["instructions_per_element"] = cost * next(_BYTES[name] for name in types if name in _BYTES) / 16
        figures |= {"vectorized": vectorized, "reduces": name in _REDUCTIONS}
        rows.append(StaticRow(op=source.stem, kernel=name, variant=arguments, arch=arch, **figures))
    return rows
