"""The static world: every shipped kernel variant compiled ahead of time, on a machine that needs no GPU.

    rows = collect(archs=(90,), ops=("softmax",))      compile, or find in the cache
    all(row.passed for row in rows)                    the gates: no spills, shared memory within the chip's, ...
    table(rows)                                        columns to print

.cu files are compiled by nvcc, as the extension is, and Triton kernels by Triton. The figures come from ptxas and from
the disassembled machine code.
"""

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fusedformer import build
from fusedformer.benchmarks import static_cache, static_cuda, static_triton
from fusedformer.benchmarks.static_row import SHARED_LIMIT, Row
from fusedformer.kernels.variants import Variant

ARCHS = tuple(SHARED_LIMIT)
# By op, the module whose function `variants(arch)` lists what is shipped.
TRITON_OPS = {"attention": "fusedformer.kernels.attention_variants"}


@dataclass(frozen=True)
class Column:
    """One column of a table: a cell for every row."""

    heading: str
    cells: tuple[str, ...]
    is_number: bool = False


@dataclass(frozen=True)
class _Task:
    """Compiles a file or a variant to rows, which the cache knows by `key`; without a key they are always computed."""

    compile: Callable[[], list[Row]]
    key: str = ""


def known_ops() -> tuple[str, ...]:
    """The ops that have device code, by their stems."""
    return tuple(sorted({*TRITON_OPS, *(source.stem for source in build.find_csrc().glob("*.cu"))}))


def collect(
    archs: Sequence[int] = ARCHS,
    ops: Sequence[str] | None = None,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Compile every shipped kernel variant of these ops for these architectures; what is in the cache is not compiled.

    Args:
        archs: from ARCHS; 90 is sm_90.
        ops: from known_ops(); all of them by default.
        jobs: compilers at a time.
        progress: called after each compile with how many are done, and of how many.

    Returns:
        A row per variant and architecture. One that does not compile carries its error. An op that cannot be compiled
        on this machine has a single row per architecture, with the reason in `skipped`.

    Raises:
        ValueError: an unknown architecture or op, or fewer than one job.
    """
    chosen = known_ops() if ops is None else tuple(ops)
    _check(archs, chosen, jobs)
    with static_triton.CompilerPool(jobs) as pool, ThreadPoolExecutor(jobs) as threads:
        tasks = [task for op in chosen for arch in archs for task in _tasks(op, arch, pool)]
        futures = [threads.submit(_run, task) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress:
                    progress(done, len(tasks))
        finally:
            threads.shutdown(cancel_futures=True)
    return [row for future in futures for row in future.result()]


def table(rows: Iterable[Row]) -> list[Column]:
    """What a reader wants to see of some rows, as text."""
    rows = list(rows)

    def column(heading: str, cell: Callable[[Row], object], is_number: bool = False) -> Column:
        return Column(heading, tuple(str(cell(row)) if row.compiled else "" for row in rows), is_number)

    return [
        Column("op", tuple(row.op for row in rows)),
        Column("kernel", tuple(row.kernel for row in rows)),
        Column("variant", tuple(row.variant for row in rows)),
        Column("arch", tuple(f"sm_{row.arch}" for row in rows)),
        column("registers", lambda row: row.registers, is_number=True),
        column("spills (B)", lambda row: row.spill_bytes, is_number=True),
        column("stack (B)", lambda row: row.stack_bytes, is_number=True),
        column("shared (B)", lambda row: row.shared_bytes, is_number=True),
        column("matrix", lambda row: " ".join(f"{count} {name}" for name, count in row.matrix.items()) or "-"),
        column("128-bit loads", lambda row: f"{row.global_loads_128} of {row.global_loads}"),
        column("128-bit stores", lambda row: f"{row.global_stores_128} of {row.global_stores}"),
        Column("verdict", tuple(row.verdict for row in rows)),
    ]


def _check(archs: Sequence[int], ops: Sequence[str], jobs: int) -> None:
    for name, given, known in (("archs", archs, ARCHS), ("ops", ops, known_ops())):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"{name} has {unknown}, known are {list(known)}")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")


def _run(task: _Task) -> list[Row]:
    rows = static_cache.load(task.key) if task.key else None
    if rows is None:
        rows = task.compile()
        # A failure may be of the machine, such as too little memory, and gone the next time.
        if task.key and not any(row.error for row in rows):
            static_cache.store(task.key, rows)
    return rows


def _tasks(op: str, arch: int, pool: static_triton.CompilerPool) -> Iterator[_Task]:
    source = build.find_csrc() / f"{op}.cu"
    if source.is_file():
        yield _cuda_task(source, arch)
    if op in TRITON_OPS:
        yield from _triton_tasks(op, arch, pool)


def _cuda_task(source: Path, arch: int) -> _Task:
    if reason := static_cuda.unavailable():
        return _skipped(source.stem, arch, reason)
    headers = sorted(path for path in source.parent.iterdir() if path.suffix in (".h", ".cuh"))
    texts = [path.read_bytes() for path in (source, *headers)]
    key = static_cache.key("cuda", _nvcc_version(), arch, source.name, *texts)
    return _Task(partial(static_cuda.compile_source, source, arch), key)


def _triton_tasks(op: str, arch: int, pool: static_triton.CompilerPool) -> Iterator[_Task]:
    if find_spec("triton") is None:
        yield _skipped(op, arch, "no triton: there are packages of it for Linux only")
        return
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if "PTXAS" in name)
    compiler = ("triton", version("triton"), *settings)
    texts: dict[str, list[bytes]] = {}
    variants: list[Variant] = import_module(TRITON_OPS[op]).variants(arch)
    for variant in variants:
        if variant.module not in texts:
            texts[variant.module] = [path.read_bytes() for path in static_triton.sources(variant.module)]
        key = static_cache.key(*compiler, arch, repr(variant), *texts[variant.module])
        yield _Task(partial(_compile_variant, pool, variant, arch), key)


def _compile_variant(pool: static_triton.CompilerPool, variant: Variant, arch: int) -> list[Row]:
    return [pool.compile(variant, arch)]


def _skipped(op: str, arch: int, reason: str) -> _Task:
    return _Task(lambda: [Row(op=op, arch=arch, skipped=reason)])


@cache
def _nvcc_version() -> str:
    return subprocess.check_output([str(build.find_nvcc()), "--version"], text=True)
