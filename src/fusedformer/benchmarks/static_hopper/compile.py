"""Compile one Hopper kernel ahead of time. Run as a module, with a pickled variant on standard input: prints its row.

A process of its own, for Triton decides between compiler and interpreter when it is imported, and a compile can end
the process it runs in.
"""

import contextlib
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fusedformer import build
from fusedformer.benchmarks.static import loops, sass
from fusedformer.benchmarks.static.row import measured, parse_warnings
from fusedformer.benchmarks.static_hopper import model, protocol
from fusedformer.benchmarks.static_hopper.row import HopperRow
from fusedformer.kernels.attention.hopper.variants import HopperVariant, Tile

TIMEOUT_S = 600.0
_EMULATION_SETTINGS = ("TRITON_INTERPRET", "FUSEDFORMER_EMULATE")
_WAIT = re.compile(r"gsb0, 0x(\d+)")


def compile_apart(variant: HopperVariant) -> HopperRow:
    """The row of a variant, compiled in another process; it carries the error if it does not compile."""
    environment = {name: value for name, value in os.environ.items() if name not in _EMULATION_SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__],
            input=pickle.dumps(variant),
            capture_output=True,
            timeout=TIMEOUT_S,
            env=environment | {"TRITON_CACHE_DIR": folder},
        )
    if done.returncode == 0:
        return HopperRow.from_dict(json.loads(done.stdout))
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if "rror" in line), (lines or ["no message"])[-1])
    return HopperRow(op="attention", kernel=variant.kernel, variant=str(variant), arch=model.ARCH, error=error)


def compile_variant(variant: HopperVariant) -> HopperRow:
    """Compile in this process, which must be one where Triton compiles."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    from fusedformer.kernels.attention.hopper.kernels import KERNELS

    triton.knobs.nvidia.dump_ptxas_log = True
    kernel = KERNELS[variant.row.built_as]
    arguments = variant.arguments()
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attrs: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        signature[name] = _type(value) if isinstance(value, str | Tile) else "constexpr"
        if signature[name] == "constexpr":
            constants[(index,)] = value
        elif signature[name].startswith("*"):
            attrs[(index,)] = [["tt.divisibility", 16]]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compiled = triton.compile(
            GluonASTSource(kernel, signature, constants, attrs),
            target=GPUTarget("cuda", model.ARCH, 32),
            options={"num_warps": 4, "maxnreg": variant.row.registers},
        )
    (resources,) = build.parse_ptxas(printed.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        disassembly = sass.disassemble(cubin)
    symbol = compiled.metadata.name
    steady = _steady_loops(variant, disassembly, symbol)
    found = model.bound(steady, variant.copied_bytes, variant.row.consumers)
    figures = measured(resources, sass.instruction_mixes(disassembly)[symbol])
    figures["shared_bytes"] = compiled.metadata.shared
    return HopperRow(
        op="attention",
        kernel=variant.kernel,
        variant=str(variant),
        arch=model.ARCH,
        triton=triton.__version__,
        warnings=parse_warnings(printed.getvalue()),
        steady_cycles=found.cycles,
        programs=1,
        consumers=variant.row.consumers,
        predicted_tflops=found.tflops,
        most_tflops=found.most_tflops,
        bound=found.unit,
        waits=tuple(itertools.chain(*sorted(map(_waits, steady)))),  # the order of the loops is the compiler's
        early_arrivals=protocol.early_arrivals(compiled.asm["ptx"]),
        unfenced_stores=protocol.unfenced_stores(compiled.asm["ptx"]),
        fences=protocol.fences(compiled.asm["ptx"]),
        **figures,
    )


def _steady_loops(variant: HopperVariant, disassembly: str, symbol: str) -> list[loops.Loop]:
    """That of all consumers, or where they do different work, in one loop each, those of one and the other."""
    if variant.row.has_unlike_consumers:
        found = loops.matrix_loops(disassembly, symbol)
        if len(found) != variant.row.consumers:
            raise RuntimeError(f"{len(found)} loops with matrix instructions, expected one of each consumer")
        return found
    steady = loops.steady_loop(disassembly, symbol)
    if steady is None:
        raise RuntimeError("no loop with matrix instructions")
    return [steady]


def _waits(loop: loops.Loop) -> list[int]:
    """For all but how many products a loop waits, each time."""
    found = (_WAIT.search(step.operands) for step in loop.body if step.opcode.startswith("WARPGROUP.DEPBAR"))
    return [int(wait[1]) for wait in found if wait]


def _type(value: str | Tile) -> str:
    """The Triton type of an argument."""
    from triton.experimental.gluon import language as gl

    if isinstance(value, str):
        return value
    shape = list(value.shape)
    dtype = {"bf16": gl.bfloat16, "fp16": gl.float16, "fp32": gl.float32, "fp8e4nv": gl.float8e4nv}[value.dtype]
    # Lines of numbers, (1, 1, n), as launch.numbers_of describes them; tiles as launch.rows_of does.
    is_line = len(shape) == 3
    layout = gl.NVMMASharedLayout(0, 32, 3) if is_line else gl.NVMMASharedLayout.get_default_for(shape, dtype)
    return f"tensordesc<{dtype}{shape},{layout!r}>".replace(" [", "[")


if __name__ == "__main__":
    print(json.dumps(compile_variant(pickle.load(sys.stdin.buffer)).to_dict()))
