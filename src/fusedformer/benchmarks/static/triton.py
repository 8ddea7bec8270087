"""Triton kernels in the static world: each shipped variant compiled as for a GPU, in processes of their own.

A process is needed twice over: Triton decides between compiler and interpreter when it is imported, and a compile can
end the process it runs in. Run as a module, this file is that process.
"""

import ast
import contextlib
import io
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from fusedformer import build
from fusedformer.benchmarks.harness.processes import ending
from fusedformer.benchmarks.report.rows import without_folders
from fusedformer.benchmarks.static import loops, model, sass
from fusedformer.benchmarks.static.row import StaticRow, measured, parse_warnings
from fusedformer.kernels.variants import Variant

TIMEOUT_S = 300.0  # of one compile; they take seconds
OUT_OF_TIME = "the time for it was spent"
# Under these, the kernels would be interpreted instead of compiled.
_EMULATION_SETTINGS = ("TRITON_INTERPRET", "FUSEDFORMER_EMULATE")
_NARROW_OFFSET = re.compile(r"tt\.addptr .*(?:, |x)i32>? loc")


class CompilerPool:
    """Processes that compile variants; each starts when it is first needed, and anew after it has died."""

    def __init__(self, size: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._processes = [_CompilerProcess(Path(self._folder.name, str(number))) for number in range(size)]
        self._idle: SimpleQueue[_CompilerProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> "CompilerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.stop()
        self._folder.cleanup()

    def compile(self, variant: Variant, arch: int, seconds: float = math.inf) -> StaticRow:
        """The row of a variant, which carries the error if it does not compile; waits for an idle process.

        A compile that takes longer than `seconds` is skipped.
        """
        process = self._idle.get()
        try:
            return process.compile(variant, arch, seconds)
        finally:
            self._idle.put(process)


class _CompilerProcess:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def compile(self, variant: Variant, arch: int, seconds: float) -> StaticRow:
        process, connection = self._running or self._start()
        printed_before = self._log.stat().st_size
        reply: StaticRow | str
        try:
            connection.send((variant, arch))
            if connection.poll(min(seconds, TIMEOUT_S)):
                reply = connection.recv()
            elif seconds < TIMEOUT_S:
                self.stop()
                return StaticRow(
                    op=variant.op, kernel=variant.kernel, variant=variant.name, arch=arch, skipped=OUT_OF_TIME
                )
            else:
                reply = f"the compiler did not answer within {TIMEOUT_S:.0f} s"
                self.stop()
        except (EOFError, OSError):
            reply = f"the compiler {ending(process.wait())}"
            self.stop()
        if isinstance(reply, StaticRow):
            return reply
        error = without_folders(": ".join(filter(None, (reply, self._diagnosis(printed_before)))))
        return StaticRow(op=variant.op, kernel=variant.kernel, variant=variant.name, arch=arch, error=error)

    def stop(self) -> None:
        if self._running is None:
            return
        process, connection = self._running
        process.kill()
        process.wait()
        connection.close()
        self._running = None

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        self._folder.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in _EMULATION_SETTINGS}
        ours, theirs = multiprocessing.Pipe()
        with theirs, self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment | {"TRITON_CACHE_DIR": str(self._folder)},
                stdout=log,
                stderr=log,
            )
        self._running = (process, ours)
        return self._running

    def _diagnosis(self, printed_before: int) -> str:
        """The first error that the compiler has printed since its log had that size, or else the last line."""
        printed = self._log.read_bytes()[printed_before:].decode(errors="replace")
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        errors = [line for line in lines if "error: " in line]
        return (errors[:1] or lines[-1:] or [""])[0]


def compile_variant(variant: Variant, arch: int) -> StaticRow:
    """Compile in this process, which must be one where Triton compiles.

    The figures are of the ptxas run that makes the shipped machine code: another run, with fewer of the options that
    Triton adds, can come to other registers.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True  # nothing is printed for a compile found in Triton's cache
    kernel = getattr(import_module(variant.module), variant.kernel)
    source = ASTSource(kernel, variant.signature, variant.constexprs, variant.attrs)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    (resources,) = build.parse_ptxas(printed.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        disassembly = sass.disassemble(cubin)
    figures = measured(resources, sass.instruction_mixes(disassembly)[compiled.metadata.name])
    figures["shared_bytes"] += compiled.metadata.shared  # ptxas sees only what is declared, Triton's comes at launch
    figures["narrow_offsets"] = len(_NARROW_OFFSET.findall(compiled.asm["ttir"]))
    figures["warnings"] = parse_warnings(printed.getvalue())
    row = StaticRow(op=variant.op, kernel=variant.kernel, variant=variant.name, arch=arch, **figures)
    return _with_steady_loop(row, variant, disassembly, compiled.metadata.name) if variant.has_steady_loop else row


def _with_steady_loop(row: StaticRow, variant: Variant, disassembly: str, symbol: str) -> StaticRow:
    """The row with what the steady loop of the kernel tells."""
    loop = loops.steady_loop(disassembly, symbol)
    if loop is None:
        raise RuntimeError("no loop with matrix instructions, though a steady loop is promised")
    row = replace(row, steady_masks=loop.masks)
    programs = model.programs_per_sm(row.arch, variant.num_warps, row.registers, row.shared_bytes)
    if row.arch not in model.CHIPS or not programs:
        return row
    prediction = model.predict(row.arch, loop, variant.num_warps, programs)
    return replace(
        row,
        steady_cycles=prediction.cycles,
        programs=programs,
        predicted_tflops=prediction.tflops,
        bound=prediction.bound,
    )


def sources(module: str) -> list[Path]:
    """The file of a module and, transitively, those of its package that it imports: what its kernels are made of.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module!r}, which a kernel variant names")
    root = Path(spec.origin).parents[module.count(".")]
    found: set[Path] = set()
    pending = [Path(spec.origin)]
    while pending:
        path = pending.pop()
        if path not in found and path.is_file():
            found.add(path)
            pending += [root / f"{name.replace('.', '/')}.py" for name in _imports(path)]
    return sorted(found)


def _imports(path: Path) -> Iterator[str]:
    """The dotted names that may be modules."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        if isinstance(node, ast.Import | ast.ImportFrom):
            parent = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            yield from (parent + alias.name for alias in node.names)


def main() -> None:
    """Compile what comes over the connection, whose descriptor is the argument; answer with a row or with an error."""
    with Connection(int(sys.argv[1])) as connection, contextlib.suppress(EOFError):
        while True:
            variant, arch = connection.recv()
            try:
                reply: StaticRow | str = compile_variant(variant, arch)
            except Exception as error:
                reply = f"{type(error).__name__}: {' '.join(str(error).split())}"
            connection.send(reply)


if __name__ == "__main__":
    main()
