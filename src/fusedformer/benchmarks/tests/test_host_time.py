"""What a call costs before a kernel starts: argument checks, dispatch and launch preparation, on any machine.

Tensors are tiny, so that nearly all of a time is the host's; where it says "stubbed", what computes is replaced by its
ready result. `pytest benchmarks -k host_time` prints the tables of pytest-benchmark: ours beside what plain PyTorch
calls, one op of ATen or the few that it takes.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fusedformer
from fusedformer.benchmarks.harness.op import BACKWARD, BOTH, FORWARD, Problem, make_run
from fusedformer.benchmarks.ops import TIMED_OPS
from fusedformer.kernels import eager, emulation
from fusedformer.kernels.attention import op as attention_op
from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention

pytest.importorskip("pytest_benchmark")

Call = Callable[[], Any]
TINY = 16  # of every size, at most
SECONDS = 20.0  # for a ratio to be found below its limit, among the noise of a busy machine


@pytest.fixture
def qkv() -> torch.Tensor:
    """(1, 8, 1, 16): what serves as q, k and v."""
    return torch.randn(1, 8, 1, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stubbed(qkv: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that finds its result ready."""
    result = (torch.empty_like(qkv), torch.empty(1, 1, 8))
    monkeypatch.setattr(attention_op.attention_fwd, "_on_cpu", lambda *_: result)


def seconds(call: Call, repeats: int = 200) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def ratio(ours: Call, theirs: Call, limit: float) -> float:
    """Time of `ours` by that of `theirs`: the least of each over alternating batches, until below `limit`."""
    least = [float("inf")] * 2
    deadline = time.perf_counter() + SECONDS
    while time.perf_counter() < deadline:
        for index, call in enumerate((ours, theirs) * 5):
            least[index % 2] = min(least[index % 2], seconds(call))
        if least[0] < limit * least[1]:
            break
    return least[0] / least[1]


@pytest.mark.usefixtures("stubbed")
def test_a_call_costs_at_most_twice_that_of_sdpa(qkv: torch.Tensor) -> None:
    heads_first = qkv.transpose(1, 2)
    limit = 2.0
    found = ratio(
        lambda: attention(qkv, qkv, qkv, causal=True),
        lambda: F.scaled_dot_product_attention(heads_first, heads_first, heads_first, is_causal=True),
        limit,
    )
    assert found < limit


# Of x (0, 16) and a weight: without rows the emulated kernels have nothing to do, and the host's way to them is CUDA's.
EAGER: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gelu": (lambda x, w: fusedformer.gelu(x), lambda x, w: F.gelu(x)),
    "bias_gelu": (lambda x, w: fusedformer.bias_gelu(x, w), lambda x, w: F.gelu(x + w)),
    "swiglu": (lambda x, w: fusedformer.swiglu(x, x), lambda x, w: F.silu(x) * x),
    "softmax": (lambda x, w: fusedformer.softmax(x), lambda x, w: torch.softmax(x, -1)),
    "log_softmax": (lambda x, w: fusedformer.log_softmax(x), lambda x, w: torch.log_softmax(x, -1)),
    "layer_norm": (lambda x, w: fusedformer.layer_norm(x, w, w), lambda x, w: F.layer_norm(x, (TINY,), w, w)),
    "rms_norm": (lambda x, w: fusedformer.rms_norm(x, w), lambda x, w: F.rms_norm(x, (TINY,), w)),
    "add_layer_norm": (
        lambda x, w: fusedformer.add_layer_norm(x, x, w, w), lambda x, w: F.layer_norm(x + x, (TINY,), w, w)
    ),
    "add_rms_norm": (lambda x, w: fusedformer.add_rms_norm(x, x, w), lambda x, w: F.rms_norm(x + x, (TINY,), w)),
}  # fmt: skip


@pytest.mark.skipif(eager.status() != "loaded", reason=f"eager calls are {eager.status()}")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", EAGER)
def test_an_eager_call_costs_at_most_1_3_of_pytorchs(name: str, requires_grad: bool) -> None:
    ours, theirs = EAGER[name]
    x, w = (torch.ones(shape).requires_grad_(requires_grad) for shape in ((0, TINY), (TINY,)))
    limit = 1.3
    with emulation.emulated():
        found = ratio(lambda: ours(x, w), lambda: theirs(x, w), limit)
    print(f"{name}: {found:.2f} of PyTorch's")
    assert found < limit


@pytest.mark.benchmark(group="host time of attention")
@pytest.mark.parametrize("name", ["F.sdpa", "attention", "scaled_dot_product_attention"])
def test_attention(benchmark: Any, qkv: torch.Tensor, name: str) -> None:
    heads_first = qkv.transpose(1, 2)
    calls: dict[str, Call] = {
        "F.sdpa": lambda: F.scaled_dot_product_attention(heads_first, heads_first, heads_first, is_causal=True),
        "attention": lambda: attention(qkv, qkv, qkv, causal=True),
        "scaled_dot_product_attention": lambda: scaled_dot_product_attention(
            heads_first, heads_first, heads_first, is_causal=True
        ),
    }
    benchmark(calls[name])


@pytest.mark.benchmark(group="host time of attention")
@pytest.mark.usefixtures("stubbed")
def test_attention_stubbed(benchmark: Any, qkv: torch.Tensor) -> None:
    benchmark(lambda: attention(qkv, qkv, qkv, causal=True))


@functools.cache
def tiny_problem(name: str) -> Problem:
    """Inputs so small that what computes takes next to nothing, on the CPU."""
    op = TIMED_OPS[name]
    case = op.error_cases[0]
    tiny = replace(case, sizes={letter: min(size, TINY) for letter, size in case.sizes.items()})
    return Problem.make(op, tiny, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("whose", ["ours", "PyTorch"])
@pytest.mark.parametrize("name", TIMED_OPS)
def test_forward(benchmark: Any, name: str, whose: str) -> None:
    benchmark.group = f"host time of {name} forward"
    op = TIMED_OPS[name]
    benchmark(make_run(op.contenders["ours"] if whose == "ours" else op.plain, [tiny_problem(name)], FORWARD))


@pytest.mark.parametrize("whose", ["ours", "PyTorch"])
@pytest.mark.parametrize("name", [name for name, op in TIMED_OPS.items() if BACKWARD in op.directions])
def test_forward_and_backward(benchmark: Any, name: str, whose: str) -> None:
    benchmark.group = f"host time of {name} forward and backward"
    op = TIMED_OPS[name]
    benchmark(make_run(op.contenders["ours"] if whose == "ours" else op.plain, [tiny_problem(name)], BOTH))
