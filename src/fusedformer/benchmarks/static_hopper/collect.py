"""Every shipped Hopper kernel, compiled by the Triton that is here or found in the record of a checkout.

    rows = collect()                        compile what is not on record for this version of Triton
    python -m fusedformer.benchmarks.static_hopper.collect      the same, and write the record

The record, results/static_hopper.json, has a part for each version of Triton. A row of it is good as long as the
sources that it depends on are what they were: it carries a hash of them.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from fusedformer.benchmarks.static.cache import RECORD as PLAIN_RECORD
from fusedformer.benchmarks.static.triton import sources
from fusedformer.benchmarks.static_hopper import compile, model
from fusedformer.benchmarks.static_hopper.row import HopperRow
from fusedformer.files import atomic_write
from fusedformer.kernels.attention.hopper import tuning
from fusedformer.kernels.attention.hopper.variants import HopperVariant, variants

RECORD = PLAIN_RECORD.with_name("static_hopper.json")
_MODULES = "fusedformer.kernels.attention.hopper"

Entries = dict[str, dict[str, Any]]  # by key, a row


def collect(
    chosen: Sequence[HopperVariant] | None = None,
    progress: Callable[[int, int], None] | None = None,
    record: bool = False,
) -> list[HopperRow]:
    """A row per variant.

    Args:
        chosen: of `variants()`; all of them by default.
        progress: called after each variant with how many are done, and of how many.
        record: write what compiled to the record of the checkout, beside that of other versions of Triton.
    """
    if find_spec("triton") is None:
        reason = "no triton: there are packages of it for Linux only"
        return [HopperRow(op="attention", arch=model.ARCH, skipped=reason)]
    compiler = version("triton")
    known = recorded(compiler)
    entries = {place: known[place] for place in map(key, variants()) if place in known}
    rows = []
    wanted = list(variants() if chosen is None else chosen)
    for done, variant in enumerate(wanted, 1):
        place = key(variant)
        row = HopperRow.from_dict(known[place]) if place in known else compile.compile_apart(variant)
        rows.append(row)
        if record and row.compiled:
            entries[place] = row.to_dict()
            _write(compiler, entries)
        if progress:
            progress(done, len(wanted))
    return rows


def recorded(compiler: str) -> Entries:
    """What is on record for a version of Triton."""
    return _read().get(compiler, {})


def key(variant: HopperVariant) -> str:
    """Changes with whatever the row of a variant depends on, but for the version of Triton."""
    design = asdict(variant.row)
    for known in ("evidence", "recorded", "unserved"):  # what is known of a row is no part of it
        del design[known]
    digest = hashlib.sha256(_sources(variant.row.built_as))
    digest.update(repr((design, variant.dtype, variant.features, tuning.REGISTERS)).encode())
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
