"""Verdicts on ratios of times, and the noise floor of a run."""

import pytest

from fusedformer.benchmarks.harness.timing import Interval
from fusedformer.benchmarks.harness.verdicts import MARGIN, Noise, verdict
from fusedformer.benchmarks.report import tables


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.985, 1.015, "SAME"),
        (1 / 1.02, 1.02, "SAME"),
        (0.5, 0.97, "FASTER"),
        (0.5, 0.99, "UNSURE"),
        (1.03, 1.1, "SLOWER"),
        (1.01, 1.1, "UNSURE"),
        (0.5, 2.0, "UNSURE"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, expected: str) -> None:
    assert verdict(Interval(low, 1.0, high)) == expected


def test_a_wider_margin_forgives_more() -> None:
    ratio = Interval(1.03, 1.05, 1.07)
    assert (verdict(ratio), verdict(ratio, margin=0.1), verdict(ratio, margin=0.05)) == ("SLOWER", "SAME", "UNSURE")


def test_the_noise_of_a_run_is_what_99_of_100_cells_stay_within() -> None:
    quiet, loud = Interval(0.995, 1.0, 1.005), Interval(1.0, 1.1, 1.2)
    noise = Noise.of([quiet] * 199 + [loud])
    assert (noise.cells, noise.same, noise.is_low) == (200, 199, True)
    assert noise.floor == pytest.approx(1 / 0.995 - 1)
    assert noise.margin == MARGIN
    few = Noise.of([quiet] * 9 + [loud])
    assert (few.same, few.is_low) == (9, False)
    assert few.margin == few.floor == pytest.approx(0.2)
    assert verdict(loud, few.margin) == "SAME"


def test_a_run_without_such_cells_has_no_floor() -> None:
    table = tables.noise_table(Noise.of([]))
    assert (table.lines, table.notes) == ((), ("There was no time to time ours against ours.",))
    assert Noise.of([]) == Noise.from_dict(None) == Noise(0, 0, 0.0)
    assert Noise.from_dict({"cells": 2, "same": 1, "floor": 0.5}) == Noise(2, 1, 0.5)
