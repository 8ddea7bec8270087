"""Every shipped Hopper kernel: from the record of a checkout, from the cache, or compiled by the Triton that is here.

    rows = collect()                        compile what neither has for this version of Triton
    python -m fusedformer.benchmarks.static_hopper.collect      the same, and write the record

The record, results/static_hopper.json, has a part for each version of Triton. A row of it is good as long as the
sources that it depends on are what they were: it carries a hash of them. So does a row of the cache, which is all that
an installed wheel has.
"""

import contextlib
import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fusedformer import build
from fusedformer.benchmarks.static import cache
from fusedformer.benchmarks.static.triton import sources
from fusedformer.benchmarks.static_hopper import compile, model
from fusedformer.benchmarks.static_hopper.row import HopperRow
from fusedformer.files import atomic_write
from fusedformer.kernels.attention.hopper.variants import HopperVariant, variants

RECORD = cache.RECORD.with_name("static_hopper.json")
_MODULES = "fusedformer.kernels.attention.hopper"

Entries = dict[str, dict[str, Any]]  # by key, a row


def collect(
    chosen: Sequence[HopperVariant] | None = None,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
    record: bool = False,
) -> list[HopperRow]:
    """A row per variant, in their order.

    Args:
        chosen: of `variants()`; all of them by default.
        jobs: compilers at a time.
        progress: called after each variant with how many are done, and of how many.
        record: write what compiled to the record of the checkout, beside that of other versions of Triton.

    Raises:
        ValueError: fewer than one job.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    if find_spec("triton") is None:
        reason = "no triton: there are packages of it for Linux only"
        return [HopperRow(op="attention", arch=model.ARCH, skipped=reason)]
    compiler = version("triton")
    known = recorded(compiler)
    entries = {place: known[place] for place in map(key, variants()) if place in known}
    wanted = list(variants() if chosen is None else chosen)
    places = [key(variant) for variant in wanted]
    with ThreadPoolExecutor(jobs) as threads:
        futures = [threads.submit(_row, variant, place, known) for variant, place in zip(wanted, places)]
        place_of = dict(zip(futures, places))
        try:
            for done, future in enumerate(as_completed(futures), 1):
                row = future.result()
                if record and row.compiled:
                    entries[place_of[future]] = row.to_dict()
                    _write(compiler, entries)
                if progress:
                    progress(done, len(wanted))
        finally:
            threads.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _row(variant: HopperVariant, place: str, known: Entries) -> HopperRow:
    """From the record, else from the cache, else compiled; a failure is not kept, for it may be of the machine."""
    if place in known:
        return HopperRow.from_dict(known[place])
    path = _cache_path(place)
    if (row := _load(path)) is not None:
        return row
    try:
        row = compile.compile_apart(variant)
    except subprocess.TimeoutExpired as late:
        error = f"the compiler did not answer within {late.timeout:.0f} s"
        return HopperRow(op="attention", kernel=variant.kernel, variant=str(variant), arch=model.ARCH, error=error)
    if row.compiled:
        _store(path, row)
    return row


def _cache_path(place: str) -> Path:
    """Where the cache has the row of this key, as this Triton and its assembler compile it."""
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if "PTXAS" in name)
    return build.cache_home() / "static_hopper" / cache.key(place, "triton", version("triton"), *settings)


def _load(path: Path) -> HopperRow | None:
    """The row that the cache has there; None if there is none, or a damaged one."""
    try:
        checksum, body = path.read_text().split("\n", 1)
        return HopperRow.from_dict(json.loads(body)) if checksum == cache.key(body) else None
    except (OSError, ValueError):
        return None


def _store(path: Path, row: HopperRow) -> None:
    """Keep a row, whole or not at all, below its checksum; where nothing can be written, nothing is kept."""
    body = json.dumps(row.to_dict())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(f"{cache.key(body)}\n{body}")


def recorded(compiler: str) -> Entries:
    """What is on record for a version of Triton."""
    return _read().get(compiler, {})


def key(variant: HopperVariant) -> str:
    """Changes with whatever the row of a variant depends on, but for the version of Triton."""
    design = asdict(variant.row)
    for known in ("evidence", "recorded", "unserved"):  # what is known of a row is no part of it
        del design[known]
    digest = hashlib.sha256(_sources(variant.row.built_as))
    digest.update(repr((design, variant.dtype, variant.features, variant.row.registers)).encode())
    return digest.hexdigest()[:32]


@functools.cache
def _sources(kernel: str) -> bytes:
    """The kernel, and the code that compiles it and describes the outcome; budgets judge rows later."""
    module = f"{_MODULES}.{'bwd' if kernel in ('dkdv', 'fused') else kernel}_kernel"
    folders = ("static", "static_hopper")
    tools = [path for path in sources(compile.__name__) if path.parent.name in folders and path.name != "budgets.py"]
    described = [path for path in sources(f"{_MODULES}.variants") if path.name == "variants.py"]
    return b"".join(path.read_bytes() for path in (*sources(module), *tools, *described))


def _read() -> dict[str, Entries]:
    try:
        return json.loads(RECORD.read_bytes())
    except (OSError, ValueError):
        return {}


def _write(compiler: str, entries: Entries) -> None:
    record = _read() | {compiler: entries}
    RECORD.parent.mkdir(exist_ok=True)
    with atomic_write(RECORD) as partial:
        partial.write_text(json.dumps(dict(sorted(record.items())), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    for row in collect(record=True, progress=lambda done, total: print(f"{done} of {total}", flush=True)):
        print(row.kernel, row.variant, f"{row.predicted_tflops:.0f} TFLOP/s", row.bound, row.verdict, flush=True)
