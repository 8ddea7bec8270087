"""The error budget itself: what it accepts and what it must not."""

import math

import pytest
import torch

from fusedformer.benchmarks.harness.accuracy import budget_ratio, ulp, worst


def test_plain_result_is_within_its_own_budget() -> None:
    exact = torch.linspace(0, 1, 7, dtype=torch.float64)
    plain = exact.bfloat16()
    assert 0 < budget_ratio(plain, exact, plain) <= 0.5


def test_error_counts_in_budgets() -> None:
    exact = torch.tensor([1.0], dtype=torch.float64)
    plain = torch.tensor([1.0 + 1e-3])
    out = torch.tensor([1.0 + 4e-3])
    assert budget_ratio(out, exact, plain) == pytest.approx(2.0, rel=1e-2)
    assert budget_ratio(out, exact, plain, factor=4.0) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_special_values_must_match_place_by_place(wrong: float) -> None:
    exact = torch.tensor([1.0, math.inf, -math.inf, math.nan], dtype=torch.float64)
    plain = exact.float()
    assert budget_ratio(plain, exact, plain) == 0.0
    for place in range(4):
        out = plain.clone()
        out[place] = wrong if not out[place].eq(wrong) and not (out[place].isnan() and math.isnan(wrong)) else 2.0
        assert budget_ratio(out, exact, plain) == math.inf


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_a_plain_result_that_is_not_finite_grants_nothing(special: float) -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    plain = torch.tensor([special, 2.0])
    assert budget_ratio(torch.tensor([1.0, 2.0]), exact, plain) == 0.0
    assert budget_ratio(torch.tensor([1.5, 2.0]), exact, plain) > 1
    assert budget_ratio(torch.tensor([1.5, 2.0]), exact, torch.full((2,), special)) > 1
    assert budget_ratio(torch.tensor([special, 2.0]), exact, plain) == math.inf


def test_an_error_that_overflows_float64_is_wrong() -> None:
    huge = torch.tensor([1.7e308], dtype=torch.float64)
    assert budget_ratio(-huge, huge, -huge) == math.inf


def test_the_worst_ratio_is_nan_if_there_is_one() -> None:
    assert worst([]) == 0.0
    assert worst([0.5, 2.0, 1.0]) == 2.0
    for ratios in ([math.nan, 2.0], [2.0, math.nan]):
        assert worst(ratios) == math.inf


def test_empty_and_bad_input() -> None:
    empty = torch.empty(0)
    assert budget_ratio(empty, empty.double(), empty) == 0.0
    with pytest.raises(ValueError, match=r"out \(2,\), exact \(3,\)"):
        budget_ratio(torch.ones(2), torch.ones(3).double(), torch.ones(2))
    with pytest.raises(ValueError, match=r"exact is torch.float32"):
        budget_ratio(torch.ones(2), torch.ones(2), torch.ones(2))


def test_ulp() -> None:
    assert ulp(1.0, torch.float32) == 2.0**-23
    assert ulp(1.99, torch.bfloat16) == 2.0**-7
    assert ulp(8.0, torch.float16) == 8 * 2.0**-10
    assert ulp(0.0, torch.float16) == torch.finfo(torch.float16).smallest_normal * 2.0**-10
