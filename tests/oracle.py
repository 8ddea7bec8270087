"""Holding a result against float64, by the error budget of fusedformer.benchmarks.harness.accuracy."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.accuracy import GRADIENT_FACTOR, OUTPUT_FACTOR, budget_ratio, ulp
from fusedformer.benchmarks.harness.op import forward_backward, in_float64

largest_ratio = 0.0
"""Of the running test case; the run's closing table shows the largest of each op and world."""


def assert_within_budget(name: str, out: Tensor, exact: Tensor, plain: Tensor, *, gradient: bool = False) -> None:
    """Assert that `out` is as close to float64 as the budget asks, and print by how much."""
    global largest_ratio
    ratio = budget_ratio(out, exact, plain, factor=GRADIENT_FACTOR if gradient else OUTPUT_FACTOR)
    largest_ratio = max(largest_ratio, ratio)
    print(f"{name}: {ratio:.3f} of the error budget")
    assert ratio <= 1.0, f"{name}: error is {ratio:.3g} times its budget ({out.dtype}, shape {tuple(out.shape)})"


def check_op(
    op: Callable[..., Tensor],
    plain_op: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Hold output and gradients of `op` against `plain_op` in float64, judged by `plain_op` in the same dtype.

    Inputs of integers, which have no gradient, come last.
    """
    names = names or [f"d_input{index}" for index, x in enumerate(inputs) if x.is_floating_point()]
    grad = torch.randn(plain_op(*inputs).shape, generator=torch.Generator().manual_seed(1)).to(inputs[0])
    got = forward_backward(op, inputs, grad)
    exact = forward_backward(plain_op, [in_float64(x).cpu() for x in inputs], grad.double().cpu())
    plain = forward_backward(plain_op, inputs, grad)
    assert got[0].dtype == inputs[0].dtype
    for index, (name, *tensors) in enumerate(zip(("out", *names), got, exact, plain, strict=True)):
        assert_within_budget(name, *tensors, gradient=index > 0)


def every_value(dtype: torch.dtype) -> Tensor:
    """All 65,536 numbers of a 16-bit dtype, infinities and NaN among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def assert_rounded(out: Tensor, exact: Tensor, *, before: Tensor | float) -> None:
    """Assert that each element is as `exact` rounded to the dtype of `out`, after an error of at most `before`."""
    got = out.cpu().double()
    assert torch.equal(got.isnan(), exact.isnan())
    finite = exact.abs() <= torch.finfo(out.dtype).max
    assert torch.equal(got[~finite].nan_to_num(), exact[~finite].nan_to_num())
    _, exponents = torch.frexp(exact.abs().clamp(min=torch.finfo(out.dtype).smallest_normal))
    half_ulp = ulp(1.0, out.dtype) / 2 * torch.exp2(exponents.double() - 1)
    excess = ((got - exact).abs() - half_ulp - before)[finite]
    worst = int(excess.argmax())
    assert excess[worst] <= 0, f"{got[finite][worst]} instead of {exact[finite][worst]}"
