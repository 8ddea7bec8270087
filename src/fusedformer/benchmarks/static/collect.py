"""Every shipped kernel variant, compiled or found in the cache.

    rows = collect(archs=(90,), ops=("softmax",))      compile, or find in the cache
    all(row.passed for row in rows)                    the gates: no spills, shared memory within the chip's, ...

.cu files are compiled by nvcc, as the extension is, and Triton kernels by Triton. The figures come from ptxas and from
the disassembled machine code.
"""

import functools
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fusedformer import build
from fusedformer.benchmarks.static import cache, cuda, triton
from fusedformer.benchmarks.static.row import SHARED_LIMIT, StaticRow
from fusedformer.kernels.variants import Variant

ARCHS = tuple(SHARED_LIMIT)
# By op, the module whose function `variants(arch)` lists what is shipped.
TRITON_OPS = {"attention": "fusedformer.kernels.attention.variants"}


@dataclass(frozen=True)
class _Task:
    """Compiles a file or a variant to rows, which the cache knows by `key`; without a key they are always computed.

    `compile` takes the seconds that it may last; `row` is what is known before it.
    """

    row: StaticRow
    compile: Callable[[float], list[StaticRow]]
    key: str = ""


def known_ops() -> tuple[str, ...]:
    """The ops that have device code, by their stems."""
    return tuple(sorted({*TRITON_OPS, *(source.stem for source in build.find_csrc().glob("*.cu"))}))


def collect(
    archs: Sequence[int] = ARCHS,
    ops: Sequence[str] | None = None,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
    deadline: float = math.inf,
    record: bool = False,
) -> list[StaticRow]:
    """Compile every shipped kernel variant of these ops for these architectures; what is in the cache is not compiled.

    Args:
        archs: from ARCHS; 90 is sm_90.
        ops: from known_ops(); all of them by default.
        jobs: compilers at a time.
        progress: called after each compile with how many are done, and of how many.
        deadline: on the clock of time.monotonic(); no compile begins after it, and Triton's end at it.
        record: write what compiled to the record of the checkout.

    Returns:
        A row per variant and architecture. One that does not compile carries its error. An op that cannot be compiled
        on this machine has a single row per architecture, with the reason in `skipped`; what the deadline kept from
        being compiled has one of its own.

    Raises:
        ValueError: an unknown architecture or op, or fewer than one job.
    """
    chosen = known_ops() if ops is None else tuple(ops)
    _check(archs, chosen, jobs)
    with triton.CompilerPool(jobs) as pool, ThreadPoolExecutor(jobs) as threads:
        tasks = [task for op in chosen for arch in archs for task in _tasks(op, arch, pool)]
        futures = [threads.submit(_run, task, deadline) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress:
                    progress(done, len(tasks))
        finally:
            threads.shutdown(cancel_futures=True)
    if record:
        found = {task.key: future.result() for task, future in zip(tasks, futures) if task.key}
        cache.record({key: rows for key, rows in found.items() if all(row.compiled for row in rows)})
    return [row for future in futures for row in future.result()]


def _check(archs: Sequence[int], ops: Sequence[str], jobs: int) -> None:
    for name, given, known in (("archs", archs, ARCHS), ("ops", ops, known_ops())):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"{name} has {unknown}, known are {list(known)}")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")


def _run(task: _Task, deadline: float) -> list[StaticRow]:
    if task.key and (rows := cache.load(task.key)):
        return rows
    seconds = deadline - time.monotonic()
    if task.row.skipped or seconds <= 0:
        return [replace(task.row, skipped=task.row.skipped or triton.OUT_OF_TIME)]
    rows = task.compile(seconds)
    # A failure may be of the machine, such as too little memory, and gone the next time.
    if task.key and all(row.compiled for row in rows):
        cache.store(task.key, rows)
    return rows


def _tasks(op: str, arch: int, pool: triton.CompilerPool) -> Iterator[_Task]:
    source = build.find_csrc() / f"{op}.cu"
    if source.is_file():
        yield _cuda_task(source, arch)
    if op in TRITON_OPS:
        yield from _triton_tasks(op, arch, pool)


def _cuda_task(source: Path, arch: int) -> _Task:
    if reason := cuda.unavailable():
        return _skipped(source.stem, arch, reason)
    texts = [path.read_bytes() for path in cuda.sources(source)]
    key = cache.key("cuda", _nvcc_version(), arch, source.name, *texts)
    row = StaticRow(op=source.stem, kernel=source.name, arch=arch)
    return _Task(row, lambda seconds: cuda.compile_source(source, arch), key)


def _triton_tasks(op: str, arch: int, pool: triton.CompilerPool) -> Iterator[_Task]:
    if find_spec("triton") is None:
        yield _skipped(op, arch, "no triton: there are packages of it for Linux only")
        return
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if "PTXAS" in name)
    compiler = ("triton", version("triton"), *settings)
    texts: dict[str, list[bytes]] = {}
    variants: list[Variant] = import_module(TRITON_OPS[op]).variants(arch)
    for variant in variants:
        if variant.module not in texts:
            texts[variant.module] = [path.read_bytes() for path in triton.sources(variant.module)]
        key = cache.key(*compiler, arch, repr(variant), *texts[variant.module])
        row = StaticRow(op=op, kernel=variant.kernel, variant=variant.name, arch=arch)
        yield _Task(row, partial(_compile_variant, pool, variant, arch), key)


def _compile_variant(pool: triton.CompilerPool, variant: Variant, arch: int, seconds: float) -> list[StaticRow]:
    return [pool.compile(variant, arch, seconds)]


def _skipped(op: str, arch: int, reason: str) -> _Task:
    return _Task(StaticRow(op=op, arch=arch, skipped=reason), lambda seconds: [])


@functools.cache
def _nvcc_version() -> str:
    return subprocess.check_output([str(build.find_nvcc()), "--version"], text=True)
