"""What a benchmark file declares of its op: cases, inputs, contenders, bytes or FLOPs; how to judge and time them."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.accuracy import budget_ratios, worst
from fusedformer.benchmarks.harness.comparison import OURS, Comparison, Contender, Verdict, Work, judge
from fusedformer.benchmarks.harness.timing import Run
from fusedformer.kernels import library

FORWARD, BACKWARD = "forward", "backward"
DIRECTIONS = (FORWARD, BACKWARD)
WORLDS = {"cpu": "reference", "cuda": "gpu"}  # by device type


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


def traffic(case: Case, tensors: int) -> Work:
    """Moving that many tensors of all the sizes of `case`, each element once."""
    return Work(tensors * math.prod(case.sizes.values()) * case.dtype.itemsize / 1e9, "GB")


Inputs = tuple[Tensor, ...]
Function = Callable[..., Any]  # gives a Tensor


@dataclass(frozen=True)
class Op:
    """One op as the harness sees it.

    Functions of the op take the tensors of `input_names` and the options of a case. Inputs of integers come last and
    have no gradient.
    """

    name: str
    input_names: tuple[str, ...]
    make_inputs: Callable[[Case, torch.Generator], Inputs]
    work: Callable[[Case, str], Work]  # of a case in one direction
    contenders: Mapping[str, Function]  # "ours" first
    plain: Function  # plain PyTorch: exact in float64, and the measure of the error budget in the case's dtype
    error_cases: tuple[Case, ...]  # small: every world runs them
    time_cases: Mapping[str, tuple[Case, ...]]  # by device type
    output_shape: Callable[[Inputs], Sequence[int]] = lambda inputs: inputs[0].shape
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
        return cls(op, case, inputs, randn(op.output_shape(inputs), case, generator))

    @property
    def n_bytes(self) -> int:
        """Bytes of the inputs and the output's gradient."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.inputs, self.grad))

    def error_ratios(self, function: Function) -> dict[str, float]:
        """Share of the error budget that `function` uses, by tensor: "out", then the gradient of each input."""
        with_gradient = zip(self.op.input_names, map(torch.is_floating_point, self.inputs), strict=True)
        names = ("out", *(f"d{name}" for name, is_floating in with_gradient if is_floating))
        results = self._split(self._results(function, self.inputs, self.grad))
        parts = self._split((*self.inputs, self.grad))
        largest = dict.fromkeys(names, 0.0)
        for (*inputs, grad), got in zip(parts, results, strict=True):
            exact = self._results(self.op.plain, [in_float64(x) for x in inputs], grad.double())
            plain = self._results(self.op.plain, inputs, grad)
            ratios = budget_ratios(names, got, exact, plain)
            largest = {name: worst((largest[name], ratios[name])) for name in names}
        return largest

    def _results(self, function: Function, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        return forward_backward(partial(function, **self.case.options), inputs, grad)

    def _split(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return list(zip(*(self.op.parts(self.case, tensor) for tensor in tensors), strict=True))


def randn(shape: Sequence[int], case: Case, generator: torch.Generator) -> Tensor:
    """Normal values in the dtype of the case, on the generator's device."""
    return torch.randn(shape, dtype=case.dtype, device=generator.device, generator=generator)


def missing_kernel(op: str, device_type: str) -> str:
    """Why PyTorch's own kernels would compute our op on this kind of device; empty if ours do, or on a CPU."""
    if device_type != "cuda":
        return ""
    names = (f"{library.NAMESPACE}::{op}_{suffix}" for suffix in ("fwd", "bwd"))
    if all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in names):
        return ""
    return f"no CUDA kernel ({library.extension_status()})"


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
    inputs, leaves = _with_leaves(problem.inputs)
    return function(*inputs, **problem.case.options), leaves, problem.grad


def forward_backward(function: Function, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The output, then the gradient of each input that can have one."""
    inputs, leaves = _with_leaves(inputs)
    out = function(*inputs)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad))


def in_float64(tensor: Tensor) -> Tensor:
    """The same numbers; integers stay what they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _with_leaves(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors, and those of them that now require a gradient: all but integers."""
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
    return inputs, [x for x in inputs if x.requires_grad]


def comparisons(op: Op, case: Case, device: torch.device, seed: int) -> list[Comparison]:
    """Forward and backward of one case; both share their inputs and the verdicts on the contenders."""
    timed = _TimedCase(op, case, device, seed)
    return [
        Comparison(
            subject=op.name,
            case=str(case),
            dtype=case.dtype_name,
            world=WORLDS[device.type],
            direction=direction,
            contenders={
                name: Contender(partial(timed.verdict, name), partial(timed.prepare, name, direction))
                for name in op.contenders
            },
            work=op.work(case, direction),
        )
        for direction in DIRECTIONS
    ]


class _TimedCase:
    """Inputs and verdicts of one case, made when they are first needed."""

    def __init__(self, op: Op, case: Case, device: torch.device, seed: int) -> None:
        self.op, self.case, self.device, self.seed = op, case, device, seed
        self._verdicts: dict[str, Verdict] = {}

    @cached_property
    def problems(self) -> list[Problem]:
        """Enough of them to take turns that the L2 cache of a GPU has lost the inputs when their turn comes again."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        first = Problem.make(self.op, self.case, generator)
        further = math.ceil(2 * _l2_bytes(self.device) / first.n_bytes)
        return [first, *(Problem.make(self.op, self.case, generator) for _ in range(further))]

    def verdict(self, contender: str) -> Verdict:
        """Whether output and gradients are right; worked out once for both directions."""
        if contender not in self._verdicts:
            self._verdicts[contender] = self._judge(contender)
        return self._verdicts[contender]

    def _judge(self, contender: str) -> Verdict:
        if contender == OURS and (reason := missing_kernel(self.op.name, self.device.type)):
            return Verdict("skipped", reason)
        return judge(lambda: self.problems[0].error_ratios(self.op.contenders[contender]))

    def prepare(self, contender: str, direction: str) -> Run:
        """One call of the contender."""
        return make_run(self.op.contenders[contender], self.problems, direction)


def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
