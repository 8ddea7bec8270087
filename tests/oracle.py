"""Holding a result against float64, by the error budget of fusedformer.benchmarks.harness.accuracy."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.accuracy import GRADIENT_FACTOR, OUTPUT_FACTOR, budget_ratio

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
    """Hold output and gradients of `op` against `plain_op` in float64, judged by `plain_op` in the same dtype."""
    names = names or [f"d_input{index}" for index in range(len(inputs))]
    grad = torch.randn(plain_op(*inputs).shape, generator=torch.Generator().manual_seed(1))
    out, *grads = _forward_backward(op, inputs, grad)
    exact, *exact_grads = _forward_backward(
        plain_op, [x.detach().double().cpu() for x in inputs], grad, inputs[0].dtype
    )
    plain, *plain_grads = _forward_backward(plain_op, inputs, grad)
    assert out.dtype == inputs[0].dtype
    assert_within_budget("out", out, exact, plain)
    for name, got, want, reachable in zip(names, grads, exact_grads, plain_grads, strict=True):
        assert_within_budget(name, got, want, reachable, gradient=True)


def _forward_backward(
    op: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, rounded_to: torch.dtype | None = None
) -> list[Tensor]:
    """Output, then the gradient of every input; `grad` is rounded to the judged dtype first, also for float64."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = op(*leaves)
    grad = grad.to(rounded_to or out.dtype).to(out.device, out.dtype)
    return [out, *torch.autograd.grad(out, leaves, grad)]
