"""What a run with a budget leaves out: contenders that take long to compile, after the case that told so."""

from dataclasses import replace

from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict
from fusedformer.benchmarks.harness.costs import Costs
from fusedformer.benchmarks.harness.instruments import Prepared
from fusedformer.benchmarks.report.rows import Row

CONTENDER = Contender(Verdict, lambda: Prepared(lambda: None))
FIRST = Comparison(
    "attention", "S=64", "bfloat16", "gpu", "forward", dict.fromkeys(("ours", "quick", "slow"), CONTENDER)
)
OTHER = replace(FIRST, case="S=128")


def row(contender: str, compile_s: float | None) -> Row:
    return Row(
        kind="time", subject="attention", case="S=64", dtype="bfloat16", world="gpu", direction="forward",
        contender=contender, compile_s=compile_s,
    )  # fmt: skip


def told() -> Costs:
    costs = Costs()
    costs.note_compiles([row("ours", 30.0), row("quick", 2.0), row("slow", 20.0), row("missing", None)])
    return costs


def test_what_takes_long_to_compile_is_left_out_of_other_cases() -> None:
    reason = "it took 20 s to compile for another case, 3 s are there for this one"
    assert told().too_slow(OTHER, 3.0) == {"slow": reason}
    assert told().too_slow(replace(OTHER, direction="backward"), 3.0) == {"slow": reason}


def test_not_where_it_has_been_compiled_or_there_is_time_or_of_another_op() -> None:
    assert told().too_slow(replace(FIRST, direction="backward"), 3.0) == {}
    assert told().too_slow(OTHER, 25.0) == {}
    assert told().too_slow(replace(OTHER, subject="softmax"), 3.0) == {}
    assert Costs().too_slow(OTHER, 0.0) == {}


def test_what_is_left_out_is_a_row_with_the_reason() -> None:
    rest, rows = OTHER.without({"slow": "why"})
    assert list(rest.contenders) == ["ours", "quick"]
    assert [(one.contender, one.case, one.status, one.reason) for one in rows] == [("slow", "S=128", "skipped", "why")]
    assert rows[0].comparison == rest.key
