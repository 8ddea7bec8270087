"""What a benchmark file declares of its op: cases, inputs, contenders, bytes or FLOPs; how to judge and time them."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.accuracy import budget_ratios, worst
from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict, Work, judge
from fusedformer.benchmarks.harness.implementation import (
    Function,
    built,
    has_backward,
    is_ours,
    scope_of,
    version_of,
    witness_of,
)
from fusedformer.benchmarks.harness.instruments import Prepared
from fusedformer.benchmarks.harness.timing import Run
from fusedformer.kernels import library

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
DIRECTIONS = (FORWARD, BACKWARD)
WORLDS = {"cpu": "reference", "cuda": "gpu"}  # by device type
L2_SIZES = 4  # that the inputs of a timed case fill together
MOST_PROBLEMS = 64  # inputs so small that these do not fill it are timed warm


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


def traffic(case: Case, tensors: int, flops: float) -> Work:
    """Moving that many tensors of all the sizes of `case`, each element once, and `flops` for each element."""
    elements = math.prod(case.sizes.values())
    return Work(flops * elements, tensors * elements * case.dtype.itemsize, "GB")


ROW_LENGTHS = (4096, 1024, 16384, 256, 65536, 262144)  # the usual ones first
ROW_BALANCE = {"N": ("M",)}  # longer rows are fewer


def row_cases(lengths: Sequence[int] = ROW_LENGTHS, name: str = "N", elements: int = 2**27) -> tuple[Case, ...]:
    """Rows of these lengths in bfloat16, as many as make up that many elements: far more than a cache holds."""
    return tuple(Case({"M": elements // length, name: length}, torch.bfloat16) for length in lengths)


Inputs = tuple[Tensor, ...]


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
    kernel: str = ""  # the op of the library that computes it, if it has another name
    directions: Sequence[str] = DIRECTIONS
    # Further keyword arguments of the functions, that follow from the sizes of a case.
    arguments: Callable[[Case], Mapping[str, Any]] = lambda case: {}
    # By a size that a sweep changes, the sizes that change the other way, so that the amount of data stays.
    balance: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # The parts of any input, output or gradient that float64 is worked out for; each is a problem of its own.
    parts: Callable[[Case, Tensor], Sequence[Tensor]] = lambda case, tensor: (tensor,)


@dataclass(frozen=True)
class Problem:
    """Inputs of one case, and the gradient that reaches its output: of an op without a backward, zeros."""

    op: Op
    case: Case
    inputs: Inputs
    grad: Tensor

    @classmethod
    def make(cls, op: Op, case: Case, generator: torch.Generator) -> "Problem":
        """Random inputs on the generator's device."""
        inputs = op.make_inputs(case, generator)
        shape = op.output_shape(inputs)
        if BACKWARD not in op.directions:
            return cls(op, case, inputs, inputs[0].new_zeros(shape))
        return cls(op, case, inputs, randn(shape, case, generator))

    @property
    def n_bytes(self) -> int:
        """Bytes of the inputs and the output's gradient."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.inputs, self.grad))

    def call(self, function: Function) -> Any:
        """One call of `function` on the inputs."""
        return self._called(function)(*self.inputs)

    def results(self, function: Function, *, with_gradients: bool = True) -> tuple[Tensor, ...]:
        """The output by `function`, then the gradient of each input that has one."""
        return self._results(function, self.inputs, self.grad, with_gradients)

    def error_ratios(self, function: Function) -> dict[str, float]:
        """Share of the error budget that `function` uses, by tensor: "out", then the gradient of each input."""
        return self.error_ratios_of(self.results(function))

    def error_ratios_of(self, got: Sequence[Tensor]) -> dict[str, float]:
        """The same of `results`, which may be the output alone."""
        with_gradient = zip(self.op.input_names, map(torch.is_floating_point, self.inputs), strict=True)
        names = ("out", *(f"d{name}" for name, is_floating in with_gradient if is_floating))[: len(got)]
        largest = dict.fromkeys(names, 0.0)
        for part, expected in zip(self._split(got), self._expected, strict=True):
            exact, plain = (results[: len(got)] for results in expected)
            ratios = budget_ratios(names, part, exact, plain)
            largest = {name: worst((largest[name], ratios[name])) for name in names}
        return largest

    @cached_property
    def _expected(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Of each part, what plain PyTorch computes in float64 and in the dtype of the case."""
        return [
            (
                self._results(self.op.plain, [in_float64(x) for x in inputs], grad.double(), True),
                self._results(self.op.plain, inputs, grad, True),
            )
            for *inputs, grad in self._split((*self.inputs, self.grad))
        ]

    def _called(self, function: Function) -> Function:
        return partial(function, **self.case.options, **self.op.arguments(self.case))

    def _results(
        self, function: Function, inputs: Sequence[Tensor], grad: Tensor, with_gradients: bool
    ) -> tuple[Tensor, ...]:
        call = self._called(function)
        if with_gradients and BACKWARD in self.op.directions:
            return forward_backward(call, inputs, grad)
        return (call(*inputs),)

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
    """One call of `function` forward, backward or both, each on the next of `problems`, round and round."""
    if direction == BACKWARD:
        graphs = itertools.cycle([_graph(function, problem) for problem in problems])

        def backward() -> tuple[Tensor, ...]:
            out, leaves, grad = next(graphs)
            return torch.autograd.grad(out, leaves, grad, retain_graph=True)

        return backward

    ring = itertools.cycle(problems)

    def forward() -> Any:
        return next(ring).call(function)

    def both() -> tuple[Tensor, ...]:
        return next(ring).results(function)

    return forward if direction == FORWARD else both


def _graph(function: Function, problem: Problem) -> tuple[Tensor, list[Tensor], Tensor]:
    inputs, leaves = _with_leaves(problem.inputs)
    return replace(problem, inputs=tuple(inputs)).call(function), leaves, problem.grad


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
    """Every direction of one case; all share their inputs and the verdicts on the contenders."""
    timed = _TimedCase(op, case, device, seed)
    return [
        Comparison(
            subject=op.name,
            case=str(case),
            dtype=case.dtype_name,
            world=WORLDS[device.type],
            direction=direction,
            contenders={
                name: Contender(
                    partial(timed.verdict, name, direction),
                    partial(timed.prepare, name, direction),
                    version_of(name, function),
                )
                for name, function in op.contenders.items()
            },
            work=op.work(case, direction),
            sizes=case.sizes,
            options=case.options,
        )
        for direction in op.directions
    ]


class _TimedCase:
    """Inputs, functions and verdicts of one case, made when they are first needed."""

    def __init__(self, op: Op, case: Case, device: torch.device, seed: int) -> None:
        self.op, self.case, self.device, self.seed = op, case, device, seed
        self._functions: dict[str, Function] = {}
        self._verdicts: dict[tuple[str, bool], Verdict] = {}

    @cached_property
    def problems(self) -> list[Problem]:
        """Enough of them to take turns that the L2 cache of a GPU has lost the inputs when their turn comes again."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        first = Problem.make(self.op, self.case, generator)
        further = math.ceil(L2_SIZES * _l2_bytes(self.device) / max(1, first.n_bytes))
        return [first, *(Problem.make(self.op, self.case, generator) for _ in range(min(further, MOST_PROBLEMS - 1)))]

    def verdict(self, contender: str, direction: str) -> Verdict:
        """Whether output and gradients are right; worked out once for all directions, unless a witness parts them."""
        function = self.op.contenders[contender]
        if direction != FORWARD and not has_backward(function):
            return Verdict("missing", "has no backward here")
        is_parted = witness_of(function) is not contextlib.nullcontext
        key = contender, has_backward(function) and (direction != FORWARD or not is_parted)
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(*key)
        return self._verdicts[key]

    def _judge(self, contender: str, with_gradients: bool) -> Verdict:
        kernel = self.op.kernel or self.op.name
        if is_ours(contender) and (reason := missing_kernel(kernel, self.device.type)):
            return Verdict("missing", reason)
        problem, seconds = self.problems[0], []
        watched = witness_of(self.op.contenders[contender])

        def error_ratios() -> dict[str, float]:
            self._functions[contender] = function = built(self.op.contenders[contender])
            for _ in range(2):
                started = time.perf_counter()
                with watched():
                    results = problem.results(function, with_gradients=with_gradients)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds.append(time.perf_counter() - started)
            return problem.error_ratios_of(results)

        verdict = judge(error_ratios)
        return replace(verdict, compile_s=max(0.0, seconds[0] - seconds[1])) if len(seconds) == 2 else verdict

    def prepare(self, contender: str, direction: str) -> Prepared:
        """One call of the contender."""
        function, problems = self._functions[contender], self.problems
        scope = scope_of(self.op.contenders[contender])
        with scope():  # of a backward, the forward is computed now
            run = make_run(function, problems, direction)
            warm = make_run(function, problems[:1], direction) if len(problems) > 1 else None
        return Prepared(_within(scope, run), warm and _within(scope, warm), len(problems))


def _within(scope: Callable[[], contextlib.AbstractContextManager[None]], run: Run) -> Run:
    """`run` with the scope in force, at no cost where there is none."""
    if scope is contextlib.nullcontext:
        return run

    def call() -> Any:
        with scope():
            return run()

    return call


def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
