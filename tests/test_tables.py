"""Tables of times: one for each op and direction, what they share in the title, what was not measured below."""

from typing import Any

from fusedformer.benchmarks.report import tables
from fusedformer.benchmarks.report.rows import Row


def row(S: int = 64, contender: str = "ours", **fields: Any) -> Row:
    known: dict[str, Any] = {
        "kind": "time", "subject": "attention", "case": f"B=2 S={S} causal=True", "sizes": {"B": 2, "S": S},
        "dtype": "float32", "world": "reference", "direction": "forward", "contender": contender,
        "time_p20_s": 1.2e-3, "time_p50_s": 1.3e-3, "time_p80_s": 1.4e-3, "rate": 0.0025, "rate_unit": "TFLOP/s",
    }  # fmt: skip
    return Row(**known | fields)


def without_time(S: int, contender: str, status: Any, reason: str) -> Row:
    nothing: dict[str, Any] = dict.fromkeys(("time_p20_s", "time_p50_s", "time_p80_s", "rate"))
    return row(S, contender, status=status, reason=reason, **nothing)


def test_what_all_cases_share_is_in_the_title() -> None:
    (table,) = tables.time_tables([row(64), row(64, "eager", ratio=1.1, ratio_low=1.0, ratio_high=1.2), row(128)])
    assert table.title == "Times of attention, forward, B=2 causal=True float32"
    assert table.columns == ["case", "contender", "time", "p20 to p80", "rate", "theirs / ours", "obtained"]
    assert table.lines == [
        ["S=64", "ours", "1.3 ms", "1.2 to 1.4 ms", "2.5 GFLOP/s", "-", "measured"],
        ["S=64", "eager", "1.3 ms", "1.2 to 1.4 ms", "2.5 GFLOP/s", "1.10 [1.00, 1.20]", "measured"],
        ["S=128", "ours", "1.3 ms", "1.2 to 1.4 ms", "2.5 GFLOP/s", "-", "measured"],
    ]


def test_directions_and_subjects_have_tables_of_their_own() -> None:
    rows = [row(), row(direction="backward"), row(subject="gelu"), row(128)]
    found = tables.time_tables(rows)
    assert [table.title.split(", ")[:2] for table in found] == [
        ["Times of attention", "forward"],
        ["Times of attention", "backward"],
        ["Times of gelu", "forward"],
    ]
    assert [len(table.lines) for table in found] == [2, 1, 1]
    assert [bool(table.notes) for table in found] == [False, False, True]


def test_what_was_not_measured_is_told_once_with_its_reason() -> None:
    spent = "the budget was spent"
    rows = [row(), without_time(64, "cuDNN", "missing", "no such kernel")]
    rows += [without_time(S, name, "skipped", spent) for S in (128, 256) for name in ("ours", "eager")]
    rows.append(without_time(64, "eager", "failed", "ValueError: x"))
    (table,) = tables.time_tables(rows)
    assert [line[0] for line in table.lines] == ["ours", "eager"]
    assert table.lines[1][1] == "failed: ValueError: x"
    assert list(table.notes[-2:]) == [
        "Not here: cuDNN, no such kernel.",
        "Skipped, the budget was spent: attention forward (2 cases).",
    ]
    (table,) = tables.time_tables(rows[2:6])
    assert table.lines == [["Skipped, the budget was spent: attention forward (2 cases)."]]
    assert tables.time_tables([]) == []


def test_rates_are_in_the_unit_that_fits() -> None:
    assert tables.rate(0.0123456, "TFLOP/s") == "12.3 GFLOP/s"
    assert tables.rate(512.3, "TFLOP/s") == "512 TFLOP/s"
    assert tables.rate(0.5, "GB/s") == "0.5 GB/s"


def test_markdown_of_a_table_without_lines_has_its_notes_alone() -> None:
    assert tables.Table("T", ("a",), [], ("why",)).markdown() == "## T\n\nwhy\n"
