"""The design space of the Hopper kernels, compiled: what the rows of tuning.py were chosen from.

python -m fusedformer.benchmarks.static_hopper.explore      writes results/hopper_design_space.md
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static.row import SHARED_LIMIT
from fusedformer.benchmarks.static_hopper import model, schedule
from fusedformer.benchmarks.static_hopper.collect import RECORD, collect, key, recorded
from fusedformer.benchmarks.static_hopper.row import HopperRow
from fusedformer.files import atomic_write
from fusedformer.kernels.attention.hopper import tuning
from fusedformer.kernels.attention.hopper.variants import HopperVariant

PATH = RECORD.with_name("hopper_design_space.md")
FEATURES = ("causal",)
# Kernel, head dimensions, then pairs of block and stages.
_SPACE: tuple[tuple[str, int, int, tuple[tuple[int, int], ...]], ...] = (
    ("fwd", 64, 64, ((64, 2), (128, 2), (128, 3), (256, 2))),
    ("fwd", 96, 96, ((64, 3), (128, 2))),
    ("fwd", 128, 128, ((64, 2), (64, 3), (128, 2))),
    ("fwd", 192, 128, ((32, 2), (64, 2))),
    ("fwd", 256, 128, ((32, 2), (64, 2))),
    ("fwd", 256, 256, ((32, 2), (64, 2))),
    ("fwd_fp8", 64, 64, ((128, 2), (256, 2))),
    ("fwd_fp8", 128, 128, ((64, 2), (128, 2), (128, 3))),
    ("fwd_fp8", 256, 128, ((64, 2), (128, 2))),
    ("dq", 64, 64, ((64, 2), (128, 2))),
    ("dq", 96, 96, ((64, 2), (128, 2))),
    ("dq", 128, 128, ((64, 2), (128, 2))),
    ("dq", 192, 128, ((32, 2), (64, 2))),
    ("dq", 256, 256, ((32, 2), (64, 1))),
    ("dkdv", 64, 64, ((64, 2), (128, 2))),
    ("dkdv", 96, 96, ((64, 2), (64, 3))),
    ("dkdv", 128, 128, ((64, 1), (64, 2))),
    ("dkdv", 192, 128, ((32, 2), (64, 2))),
    ("dkdv", 256, 128, ((32, 2), (64, 2))),
    ("dkdv", 256, 256, ((32, 4), (64, 2))),
    ("fused", 64, 64, ((64, 2), (64, 3))),
    ("fused", 96, 96, ((64, 2),)),
    ("fused", 128, 128, ((64, 2),)),
)


def candidates() -> Iterator[tuning.Row]:
    """Rows to compile: tiles, and for some of them a forward without turns, and consumers with fewer registers.

    Then the forward with three consumers, and on a persistent grid.
    """
    for kernel, head_dim, head_dim_v, tiles in _SPACE:
        for block, stages in tiles:
            row = tuning.Row(kernel, head_dim, head_dim_v, block, stages, tuning.UNKNOWN)
            yield row
            if kernel.startswith("fwd") and (block, stages) == (128, 2):
                yield replace(row, ping_pong=False)
            if head_dim_v == 128 == head_dim and _design(row) in _shipped():
                yield replace(row, consumer_registers=224)
            if (kernel, head_dim) == ("fwd", 64) and (block, stages) in ((64, 2), (128, 2)):
                three = replace(row, consumers=3, consumer_registers=160)
                yield from (three, replace(three, unserved=FEATURES))
            if kernel == "fwd" and head_dim_v <= 128 and not any(row.tails) and _design(row) in _shipped():
                yield replace(row, persistent=True)


def table(rows: dict[tuning.Row, HopperRow]) -> Table:
    """What came of each candidate, and which are shipped."""
    lines = []
    for design in candidates():
        row = rows.get(design, HopperRow(op="attention", arch=model.ARCH, skipped="not compiled yet"))
        figures: tuple[object, ...] = ("", "", "", "", "")
        if row.compiled:
            expected = f"{row.predicted_tflops:.0f} to {row.most_tflops:.0f}"
            figures = (row.spill_bytes, row.shared_bytes, row.bound, expected, _padded(design))
        cells = map(str, (*_names(design), *figures))
        lines.append((*cells, _use(design), row.verdict))
    header = ("kernel", "head dims", "block", "stages", "turns", "consumers", "registers")
    return Table(
        f"Hopper attention, bfloat16, causal, compiled by Triton {version('triton')} for sm_{model.ARCH}a",
        (*header, "spills (B)", "shared (B)", "bound", "predicted TFLOP/s", "padded", "", "verdict"),
        lines,
        [
            "Rates are of the steady loop in a model, nothing ran: from consumers that find each other in the way to "
            f"perfect overlap. An SM has {SHARED_LIMIT[model.ARCH]} bytes of shared memory for a program.",
            "Shipped are rows that pass every gate; rows on request, with FUSEDFORMER_HOPPER=persistent or =three, do "
            "for the features that they serve. Where rates are equal, the larger tile, of fewer iterations, "
            "and turns, which keep the consumers out of step: the model sees neither.",
            "Padded: of head dimensions that are no powers of 2, the rate at which the shipped tile of powers of 2 "
            "computes what is not padding. In the model, a product of 32 columns takes half as long as one of 64.",
        ],
    )


def _padded(design: tuning.Row) -> str:
    """What the smallest row without tails that fits makes of a design's products; empty for a design without tails."""
    if not any(design.tails):
        return ""
    fitting = [
        row for row in tuning.TABLE
        if row.kernel == design.kernel and not any(row.tails)
        and design.head_dim <= row.head_dim and design.head_dim_v <= row.head_dim_v
    ]  # fmt: skip
    row = min(fitting, key=lambda row: (row.head_dim, row.head_dim_v))
    share = _columns(design) / _columns(row)
    return f"{row.evidence.tflops * share:.0f} to {row.evidence.most_tflops * share:.0f}"


def _columns(row: tuning.Row) -> int:
    """Of all products of a query with a key, added up."""
    of_q, of_v = {"dq": (2, 1), "dkdv": (2, 2), "fused": (3, 2)}.get(row.kernel, (1, 1))
    return of_q * row.head_dim + of_v * row.head_dim_v


def _shipped() -> set[tuning.Row]:
    return {_design(row) for row in tuning.TABLE}


def _use(design: tuning.Row) -> str:
    if _design(design) in _shipped():
        return "shipped"
    kinds = _features(design) or ("whole",)
    rows = [row for rows in tuning.ON_REQUEST.values() for row in rows if row.serves(kinds)]
    return "on request" if _design(design) in map(_design, rows) else ""


def _features(design: tuning.Row) -> tuple[str, ...]:
    """What is compiled of a candidate."""
    return FEATURES if design.serves(FEATURES) else ()


def _design(row: tuning.Row) -> tuning.Row:
    return replace(row, evidence=tuning.UNKNOWN, recorded=False, unserved=())


def _names(row: tuning.Row) -> tuple[object, ...]:
    turns = ("yes" if row.ping_pong else "no") if row.kernel.startswith("fwd") else "-"
    kernel = f"{row.kernel}, persistent" if row.persistent else row.kernel
    kernel += ", not causal" * (not _features(row))
    sizes = (f"{row.head_dim}/{row.head_dim_v}", row.block, row.stages)
    return (kernel, *sizes, turns, row.consumers, row.consumer_registers)


def main() -> None:
    """Compile all candidates, those first that are on record, and write the table after each."""
    known = recorded(version("triton"))
    rows: dict[tuning.Row, HopperRow] = {}
    variants = {row: HopperVariant(row, features=_features(row)) for row in candidates()}
    for row in sorted(variants, key=lambda row: key(variants[row]) not in known):
        (rows[row],) = collect([variants[row]])
        with atomic_write(PATH) as partial:
            partial.write_text(f"{table(rows).markdown()}\n\n{schedule.table().markdown()}\n")


if __name__ == "__main__":
    main()
