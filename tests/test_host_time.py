"""What a call costs before a kernel starts: argument checks, dispatch and launch preparation, on any machine.

Tensors are tiny, and where it says "stubbed", what computes is replaced by its ready result.
`pytest tests/test_host_time.py` prints the table of pytest-benchmark.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fusedformer
from fusedformer.kernels.attention import op
from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention

Call = Callable[[], Any]
SECONDS = 20.0  # for a ratio to be found below its limit, among the noise of a busy machine


@pytest.fixture
def qkv() -> torch.Tensor:
    """(1, 8, 1, 16): what serves as q, k and v."""
    return torch.randn(1, 8, 1, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stubbed(qkv: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that finds its result ready."""
    result = (torch.empty_like(qkv), torch.empty(1, 1, 8))
    monkeypatch.setattr(op.attention_fwd, "_on_cpu", lambda *_: result)


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


@pytest.mark.benchmark(group="attention, host time")
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


@pytest.mark.benchmark(group="attention, host time")
@pytest.mark.usefixtures("stubbed")
def test_attention_stubbed(benchmark: Any, qkv: torch.Tensor) -> None:
    benchmark(lambda: attention(qkv, qkv, qkv, causal=True))


ROW_WISE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "layer_norm": (fusedformer.layer_norm, lambda x: F.layer_norm(x, x.shape[-1:])),
    "softmax": (fusedformer.softmax, lambda x: F.softmax(x, -1)),
    "gelu": (fusedformer.gelu, F.gelu),
    "swiglu": (fusedformer.swiglu, lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]),
}


@pytest.mark.benchmark(group="row-wise, host time")
@pytest.mark.parametrize("whose", ["ours", "PyTorch"])
@pytest.mark.parametrize("name", ROW_WISE)
def test_row_wise(benchmark: Any, name: str, whose: str) -> None:
    x = torch.linspace(-1, 1, 64).view(2, 32)
    call = ROW_WISE[name][whose == "PyTorch"]
    benchmark(lambda: call(x))
