"""What a benchmark file declares of its op: cases, inputs, contenders, bytes or FLOPs; how to run and judge them."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.gate import budget_ratios
from fusedformer.benchmarks.timing import Run

FORWARD, BACKWARD = "forward", "backward"
DIRECTIONS = (FORWARD, BACKWARD)


@dataclass(frozen=True)
class Case:
    """One problem: its sizes by dimension letter, its dtype, and the keyword arguments of the op."""

    sizes: Mapping[str, int]
    dtype: torch.dtype
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in {**self.sizes, **self.options}.items())

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Work:
    """What one call has to do at least: bytes to move, or FLOPs to compute."""

    amount: float
    unit: str  # "GB" (1e9 bytes) or "TFLOP"

    def rate(self, seconds: float) -> float:
        """In `unit` per second."""
        return self.amount / seconds


def traffic(case: Case, tensors: int) -> Work:
    """Moving that many tensors of all the sizes of `case`, each element once."""
    return Work(tensors * math.prod(case.sizes.values()) * case.dtype.itemsize / 1e9, "GB")


Inputs = tuple[Tensor, ...]
Function = Callable[..., Any]  # gives a Tensor


@dataclass(frozen=True)
class Op:
    """One op as the harness sees it. The output has the shape of the first input.

    Functions of the op take the tensors of `input_names` and the options of a case.
    """

    name: str
    input_names: tuple[str, ...]
    make_inputs: Callable[[Case, torch.Generator], Inputs]
    work: Callable[[Case, str], Work]  # of a case in one direction
    contenders: Mapping[str, Function]  # "ours" first
    plain: Function  # plain PyTorch: exact in float64, and the measure of the error budget in the case's dtype
    error_cases: tuple[Case, ...]  # small: every world runs them
    time_cases: Mapping[str, tuple[Case, ...]]  # by device type
    # The parts of any input, output or gradient that float64 is worked out for; each is a problem of its own.
    parts: Callable[[Case, Tensor], Sequence[Tensor]] = lambda case, tensor: (tensor,)


@dataclass(frozen=True)
class Problem:
    """Inputs of one case, and the gradient that reaches its output."""

    op: Op
    case: Case
    inputs: Inputs
    grad: Tensor

    @classmethod
    def make(cls, op: Op, case: Case, generator: torch.Generator) -> "Problem":
        """Random inputs on the generator's device."""
        inputs = op.make_inputs(case, generator)
        return cls(op, case, inputs, randn(inputs[0].shape, case, generator))

    @property
    def n_bytes(self) -> int:
        """Bytes of the inputs and the output's gradient."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.inputs, self.grad))

    def error_ratios(self, function: Function) -> dict[str, float]:
        """Share of the error budget that `function` uses, by tensor: "out", then the gradient of each input."""
        names = ("out", *(f"d{name}" for name in self.op.input_names))
        results = self._split(_forward_backward(function, self.case, self.inputs, self.grad))
        parts = self._split((*self.inputs, self.grad))
        worst = dict.fromkeys(names, 0.0)
        for (*inputs, grad), got in zip(parts, results, strict=True):
            exact = _forward_backward(self.op.plain, self.case, [x.double() for x in inputs], grad.double())
            plain = _forward_backward(self.op.plain, self.case, inputs, grad)
            ratios = budget_ratios(names, got, exact, plain)
            worst = {name: max(worst[name], ratios[name]) for name in names}
        return worst

    def _split(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return list(zip(*(self.op.parts(self.case, tensor) for tensor in tensors), strict=True))


def randn(shape: Sequence[int], case: Case, generator: torch.Generator) -> Tensor:
    """Normal values in the dtype of the case, on the generator's device."""
    return torch.randn(shape, dtype=case.dtype, device=generator.device, generator=generator)


def make_run(function: Function, problems: Sequence[Problem], direction: str) -> Run:
    """One call of `function` forward or backward, each on the next of `problems`, round and round."""
    ring = itertools.cycle(problems)
    if direction == FORWARD:

        def forward() -> Tensor:
            problem = next(ring)
            return function(*problem.inputs, **problem.case.options)

        return forward

    graphs = itertools.cycle([_graph(function, problem) for problem in problems])

    def backward() -> tuple[Tensor, ...]:
        out, leaves, grad = next(graphs)
        return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return backward


def _graph(function: Function, problem: Problem) -> tuple[Tensor, list[Tensor], Tensor]:
    leaves = [x.detach().requires_grad_() for x in problem.inputs]
    return function(*leaves, **problem.case.options), leaves, problem.grad


def _forward_backward(function: Function, case: Case, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The output, then the gradient of each input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **case.options)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad))
