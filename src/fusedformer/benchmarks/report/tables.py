"""The tables of a run, as text in cells: what the terminal shows and summary.md holds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from fusedformer.benchmarks import occupancy, row_times
from fusedformer.benchmarks.harness.comparison import OURS
from fusedformer.benchmarks.harness.verdicts import Noise
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.static.row import StaticRow, not_compiled


@dataclass(frozen=True)
class Table:
    """A title, columns and lines of cells; notes stand below."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """As a section of a markdown file."""
        rows = [self.columns, ["---"] * len(self.columns), *self.lines]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        return "\n\n".join([f"## {self.title}", *([table] if self.lines else ()), *self.notes]) + "\n"


def environment_table(environment: Mapping[str, Any]) -> Table:
    """Versions and hardware, one line each."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    gpus = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_gib']} GiB"
        for gpu in environment["gpus"]
    ]
    lines = [
        ("system", f"{environment['system']}, Python {environment['python']}"),
        ("packages", packages),
        ("revision", environment["revision"] or "no checkout"),
        ("compilers", f"nvcc {environment['nvcc'] or '-'}, g++ {environment['g++'] or '-'}"),
        ("extension", environment["extension"]),
        ("CPU", f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads used"),
        ("memory", f"{environment['memory_gib']} GiB"),
        ("GPU", "; ".join(gpus) + f"; driver {environment['driver']}" if gpus else "none"),
    ]
    return Table("Environment", ("", "value"), lines)


def error_table(rows: Sequence[Row]) -> Table:
    """Per op and world, the largest error ratio of all cases, or why there is none."""
    lines = []
    for (subject, world), group in groupby(_of_kind(rows, "error"), key=lambda row: (row.subject, row.world)):
        lines.append((subject, world, *_worst_case(list(group))))
    note = "Error over its budget against float64, over outputs and gradients: right at 1 or below."
    return Table("Errors", ("op", "world", "error ratio", "of", "cases", "obtained"), lines, (note,))


def _worst_case(rows: Sequence[Row]) -> tuple[str, str, str, str]:
    """The error ratio, the tensor and case it belongs to, the number of cases, and how it was obtained."""
    bad = [row for row in rows if row.status != "ok"]
    if bad:
        obtained = "-" if bad[0].status in ("skipped", "missing") else bad[0].obtained
        return _status(bad[0]), bad[0].case, str(len(rows)), obtained
    worst = max(rows, key=lambda row: row.error_ratio or 0.0)
    return (
        f"{worst.error_ratio:.2f}",
        f"{worst.worst_tensor}, {worst.dtype}, {worst.case}",
        str(len(rows)),
        worst.obtained,
    )


TIME_NOTES = (
    "theirs / ours: median over interleaved rounds and its 95% interval; above 1, ours is faster.",
    "of peak: of what a large matrix product or a large copy reached in this run; what caches hold can be above it.",
    "compile: what the first call took longer than the second.",
)


def time_tables(rows: Sequence[Row]) -> list[Table]:
    """One for each op or model and direction: a line per contender with its time, its rate and its time over ours.

    Below the last stands which contenders are missing, and which comparisons were not made, with the reasons.
    """
    timed = _of_kind(rows, "time")
    made, unmade = _by_whether_made(timed)
    absent = [
        *dict.fromkeys(f"Not here: {row.contender}, {row.reason}." for row in timed if row.status == "missing"),
        *(f"Skipped, {reason}: {', '.join(what)}." for reason, what in unmade.items()),
    ]
    tables = [_time_table(name, direction, of) for (name, direction), of in made.items()]
    if not tables:
        return [Table("Times", ("not measured",), [[reason] for reason in absent])] if absent else []
    return [*tables[:-1], replace(tables[-1], notes=[*TIME_NOTES, *absent])]


def _by_whether_made(timed: Sequence[Row]) -> tuple[dict[tuple[str, str], list[Row]], dict[str, list[str]]]:
    """The rows by subject and direction; of comparisons that no contender took part in, by reason, what was skipped."""
    comparisons: dict[tuple[str, ...], list[Row]] = {}
    for row in timed:
        comparisons.setdefault(row.comparison, []).append(row)
    made: dict[tuple[str, str], list[Row]] = {}
    skipped: dict[str, Counter[str]] = {}
    for found in comparisons.values():
        first = found[0]
        if all(row.status == "skipped" for row in found):
            skipped.setdefault(first.reason, Counter())[f"{first.subject} {first.direction}"] += 1
        else:
            present = [row for row in found if row.status != "missing"]
            made.setdefault((first.subject, first.direction), []).extend(present)
    unmade = {
        reason: [f"{what} ({number} case{'s' * (number > 1)})" for what, number in counts.items()]
        for reason, counts in skipped.items()
    }
    return {key: found for key, found in made.items() if found}, unmade


def _time_table(subject: str, direction: str, rows: Sequence[Row]) -> Table:
    """One table; what all its cases have in common stands in the title, and columns without figures are left out."""
    terms = [[*row.case.split(), row.dtype] for row in rows]
    common = [term for term in terms[0] if all(term in others for others in terms)]
    figures: dict[str, Callable[[Row], str]] = {
        "case": lambda row: " ".join(t for t in (*row.case.split(), row.dtype) if t not in common) or "-",
        "contender": lambda row: row.contender,
        "error ratio": lambda row: "-" if row.error_ratio is None else f"{row.error_ratio:.2f}",
        "time": lambda row: _status(row) if row.time_p50_s is None else duration(row.time_p50_s),
        "p20 to p80": _spread,
        "warm": lambda row: _duration(row.warm_p50_s),
        "rate": lambda row: "-" if row.rate is None else rate(row.rate, row.rate_unit),
        "of peak": lambda row: _share(row.peak_share),
        "of data sheet": lambda row: _share(row.datasheet_share),
        "memory": lambda row: "-" if row.peak_memory_bytes is None else n_bytes(row.peak_memory_bytes),
        "compile": lambda row: _duration(row.compile_s),
        "host": lambda row: _duration(row.host_p50_s),
        "theirs / ours": lambda row: "-" if row.contender == OURS else ratio(row),
        "obtained": lambda row: "-" if row.time_p50_s is None else row.obtained,
    }
    lines = [[figure(row) for figure in figures.values()] for row in rows]
    told = [index for index in range(len(figures)) if any(line[index] != "-" for line in lines)]
    columns = list(figures)
    title = f"Times of {subject}, {direction}, {' '.join(common)}"
    return Table(title, [columns[i] for i in told], [[line[i] for i in told] for line in lines])


def rate(value: float, unit: str) -> str:
    """Three digits in the unit that fits."""
    scale, fitting = rate_scale(value, unit)
    return f"{value * scale:.3g} {fitting}"


def rate_scale(largest: float, unit: str) -> tuple[float, str]:
    """The unit that fits rates up to the largest, and how many of it there are in `unit`: a CPU has GFLOP/s."""
    return (1e3, "GFLOP/s") if unit == "TFLOP/s" and largest < 1 else (1.0, unit)


def noise_table(noise: Noise) -> Table:
    """What ours against ours came to: how far apart two times can be by chance."""
    if not noise.cells:
        return Table("Noise", (), (), ("There was no time to time ours against ours.",))
    line = (f"{noise.same} of {noise.cells}", f"{noise.floor:.2%}", f"{noise.margin:.2%}")
    note = "Ours timed against ours: SAME is what they should be; a difference below the margin is none."
    return Table("Noise", ("SAME", "99% within", "margin"), [line], (note,))


def _spread(row: Row) -> str:
    if row.time_p20_s is None or row.time_p80_s is None:
        return "-"
    low, high = duration(row.time_p20_s), duration(row.time_p80_s)
    (_, unit), (_, same) = low.split(), high.split()
    return f"{low.removesuffix(f' {unit}') if unit == same else low} to {high}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def n_bytes(count: float) -> str:
    """Three digits in the unit that fits."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def ratio(row: Row) -> str:
    """Their time over ours with its interval."""
    return "-" if row.ratio is None else f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"


def static_table(rows: Sequence[StaticRow]) -> Table:
    """What every compiled kernel variant needs, how many blocks of it an SM holds, and whether that is right."""
    figures: dict[str, Callable[[StaticRow], object]] = {
        "registers": lambda row: row.registers,
        "spills (B)": lambda row: row.spill_bytes,
        "stack (B)": lambda row: row.stack_bytes,
        "shared (B)": lambda row: row.shared_bytes,
        "occupancy (blocks x threads)": lambda row: occupancy.of(row) or "-",
        "matrix": lambda row: " ".join(f"{count} {name}" for name, count in row.matrix.items()) or "-",
        "128-bit loads": lambda row: f"{row.global_loads_128} of {row.global_loads}",
        "128-bit stores": lambda row: f"{row.global_stores_128} of {row.global_stores}",
        "instructions an element": lambda row: row.instructions_per_element or "-",
    }
    if any(row.bound for row in rows):
        figures["steady loop (cycles)"] = lambda row: _cycles(row.steady_cycles)
        figures["predicted"] = lambda row: f"{row.predicted_tflops:.0f} TFLOP/s, {row.bound}" if row.bound else "-"
    lines = []
    skipped = Counter((row.op, row.verdict) for row in rows if row.skipped)
    for row in rows:
        if skipped[row.op, row.verdict] > 1:
            continue
        cells = [str(figure(row)) if row.compiled else "" for figure in figures.values()]
        lines.append((row.op, row.kernel, row.variant, f"sm_{row.arch}", *cells, row.verdict))
    # What was skipped for one reason is one line: there may be hundreds.
    empty = [""] * (1 + len(figures))
    lines += [(op, "", f"{n} variants", *empty, verdict) for (op, verdict), n in skipped.items() if n > 1]
    return Table(
        "Static",
        ("op", "kernel", "variant", "arch", *figures, "verdict"),
        lines,
        [f"{text}." for text in [not_compiled(rows)] if text],
    )


def row_times_table(rows: Sequence[StaticRow]) -> Table:
    """What a model predicts of the kernels that go over rows, in bfloat16 on an H200."""
    lines = []
    for (op, kernel), times in groupby(row_times.predict(rows), lambda time: (time.op, time.kernel)):
        known = list(times)
        cells = (f"{duration(time.seconds)}, {time.bandwidth_share:.0%}" for time in known)
        lines.append((op, kernel, f"{known[-1].issue_share:.2f}", *cells))
    return Table(
        f"Predicted times of {row_times.ROWS} rows in bfloat16 on an H200",
        ("op", "kernel", "issue / memory", *(f"N = {length}" for length in row_times.LENGTHS)),
        lines,
        ["Time, and share of the data sheet's bandwidth; what takes longer, issue or memory, binds. All `predicted`."],
    )


def _cycles(cycles: Mapping[str, float]) -> str:
    busiest_first = sorted(cycles.items(), key=lambda item: -item[1])
    return ", ".join(f"{unit} {count:.0f}" for unit, count in busiest_first) or "-"


def duration(seconds: float) -> str:
    """Three digits in the unit that fits, or whole seconds."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _status(row: Row) -> str:
    return f"{row.status}: {row.reason}"


def _of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.kind == kind]
