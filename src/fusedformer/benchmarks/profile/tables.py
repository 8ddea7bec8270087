"""The cells of a profile as tables: what the terminal shows and summary.md holds."""

from collections.abc import Sequence

from fusedformer.benchmarks.profile import cells
from fusedformer.benchmarks.profile.breakdown import LINES
from fusedformer.benchmarks.profile.cells import BREAKDOWN, CROSSOVER, EXTRAPOLATE, FIT, STEP, Cell
from fusedformer.benchmarks.profile.extrapolate import HELD_OUT, HIGH, LOW
from fusedformer.benchmarks.report.tables import Table, duration

COUNTED = "FLOPs, bytes and intensity are modelled by formula; saved activations and memory are predicted from traces."


def breakdown_table(found: Sequence[Cell], mode: str, attention: str, context: int) -> Table:
    """Every figure of one step: a line for each component."""
    chosen = {
        (c.component, c.quantity): c
        for c in found
        if (c.section, c.mode, c.attention, c.context) == (BREAKDOWN, mode, attention, context)
    }
    lines = []
    for line in (*LINES, STEP):
        time = chosen.get((line, cells.TIME))
        if time is None:
            continue
        values = {
            q: chosen[line, q].value or 0.0
            for q in (cells.TIME, cells.SHARE, cells.FLOPS, cells.BYTES, cells.INTENSITY, cells.ROOFLINE)
            if (line, q) in chosen
        }
        if time.value is None:
            lines.append((line, f"none: {time.reason}", *("-",) * 7))
            continue
        saved = chosen.get((line, cells.SAVED))
        lines.append((
            line, duration(values[cells.TIME]), f"{values[cells.SHARE]:.1%}", number(values[cells.FLOPS] / 1e12),
            size(values[cells.BYTES]), number(values[cells.INTENSITY]), f"{values[cells.ROOFLINE]:.0%}",
            size(saved.value or 0.0) if saved else "-", time.obtained,
        ))  # fmt: skip
    machines = dict.fromkeys(
        f"{c.machine}, {c.reason}" for c in chosen.values() if c.quantity == cells.TIME and c.machine
    )
    return Table(
        f"Breakdown: {mode}, attention {attention}, context {context}",
        ("component", "time", "share", "TFLOP", "moved", "FLOP/B", "of its roofline", "saved", "time obtained"),
        lines,
        [f"Times of {'; '.join(machines)}. {COUNTED}"],
    )


def growth_table(found: Sequence[Cell], mode: str) -> Table:
    """Time of the step, share of attention and peak of memory for each context and attention."""
    chosen = {
        (c.attention, c.context, c.component, c.quantity, c.obtained): c
        for c in found
        if c.section == BREAKDOWN and c.mode == mode
    }
    pairs = dict.fromkeys((c.context, c.attention) for c in chosen.values())
    lines = []
    for context, attention in sorted(pairs, key=lambda pair: pair[0]):
        steps = [c for key, c in chosen.items() if key[:4] == (attention, context, STEP, cells.TIME)]
        peaks = [c for key, c in chosen.items() if key[:4] == (attention, context, STEP, cells.PEAK)]
        if not steps:
            continue
        shares = [
            c.value or 0.0
            for key, c in chosen.items()
            if key[:2] == (attention, context)
            and key[3] == cells.SHARE
            and key[2].startswith(("attention forward", "attention backward", "softmax"))
        ]
        time = steps[0]
        lines.append((
            str(context), attention, f"none: {time.reason}" if time.value is None else duration(time.value),
            time.obtained or "-", f"{sum(shares):.1%}" if shares else "-",
            *(", ".join(texts) for texts in zip(*((size(c.value or 0.0), c.obtained) for c in peaks), strict=True)),
        ))  # fmt: skip
    columns = ("context", "attention", "step", "obtained", "of it attention", "peak memory", "obtained")
    return Table(f"Growth: {mode}", columns, lines)


def fit_table(found: Sequence[Cell]) -> Table:
    """The longest context of each attention and change, and what is held there."""
    lines = []
    for c in found:
        if c.section != FIT:
            continue
        value = "-" if c.value is None else size(c.value) if c.unit == "B" else f"{c.value:,.0f} {c.unit}"
        place = f"{c.component} at {c.context:,}" if c.context else c.component
        lines.append((c.mode, c.attention, place, value, c.obtained or "-", c.reason))
    return Table("Fit", ("mode", "attention", "what", "value", "obtained", "note"), lines)


def crossover_table(found: Sequence[Cell]) -> Table:
    """From which context on."""
    lines = [
        (c.mode, c.attention, c.quantity, "-" if c.value is None else f"{c.value:,.0f} {c.unit}", c.obtained or "-",
         c.reason)
        for c in found if c.section == CROSSOVER
    ]  # fmt: skip
    return Table("Crossover", ("mode", "attention", "from here on", "context", "obtained", "note"), lines)


def extrapolation_table(found: Sequence[Cell]) -> Table:
    """Curves, what they say of longer contexts, and how wrong they are at a held-out one."""
    lines = []
    for c in found:
        if c.section != EXTRAPOLATE:
            continue
        if c.value is None:
            continue
        if c.quantity == cells.TIME:
            value = duration(c.value)
        else:
            value = f"{c.value:+.1%}" if c.quantity == HELD_OUT else f"{c.value:.4g} {c.unit}"
        what = {LOW: "95% interval, low end", HIGH: "95% interval, high end"}.get(c.component, c.component)
        place = f"{c.quantity} at {c.context:,}" if c.context else c.quantity
        lines.append((c.mode, c.attention, place, what, value, c.obtained))
    return Table("Extrapolation: t = a + b S + c S^2", ("mode", "attention", "what", "", "value", "obtained"), lines)


def size(n_bytes: float) -> str:
    """Bytes in the binary unit that fits."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:,.4g} {unit}"
    return f"{n_bytes:.0f} B"


def number(value: float) -> str:
    """Three digits, or a whole number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
