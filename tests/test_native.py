"""Ops that PyTorch computes and differentiates on the CPU: as the op would, and only where it is the same."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import fusedformer
from fusedformer.kernels import emulation, library

W, B = torch.linspace(0.5, 1.5, 6), torch.linspace(-1, 1, 6)
TARGET = torch.tensor([0, 3, 5, 1])

CALLS: dict[str, Callable[[Tensor], Any]] = {
    "layer_norm": lambda x: fusedformer.layer_norm(x, W.to(x), B.to(x)),
    "layer_norm without weight": lambda x: fusedformer.layer_norm(x),
    "rms_norm": lambda x: fusedformer.rms_norm(x, W.to(x)),
    "add_layer_norm": lambda x: torch.stack(fusedformer.add_layer_norm(x, x.cos(), W.to(x), B.to(x))),
    "add_rms_norm": lambda x: torch.stack(fusedformer.add_rms_norm(x, x.cos(), W.to(x), eps=1e-6)),
    "softmax": fusedformer.softmax,
    "log_softmax": fusedformer.log_softmax,
    "gelu": fusedformer.gelu,
    "gelu tanh": lambda x: fusedformer.gelu(x, "tanh"),
    "bias_gelu": lambda x: fusedformer.bias_gelu(x, B.to(x)),
    "swiglu": fusedformer.swiglu,
    "swiglu of two": lambda x: fusedformer.swiglu(x, x.cos()),
    "cross_entropy": lambda x: fusedformer.cross_entropy(x, TARGET),
    "cross_entropy none": lambda x: fusedformer.cross_entropy(x.view(2, 2, 6), TARGET.view(2, 2), reduction="none"),
}


def ordinary(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    with emulation.emulated(False):
        yield


@contextlib.contextmanager
def never() -> Iterator[None]:
    """Every op computes itself."""
    with mock.patch.object(library.Op, "natively", return_value=None):
        yield


@contextlib.contextmanager
def counted() -> Iterator[list[bool]]:
    """Of each op that was asked, whether PyTorch served."""
    served: list[bool] = []
    natively = library.Op.natively

    def count(op: library.Op, *args: Any) -> Any:
        result = natively(op, *args)
        served.append(result is not None)
        return result

    with mock.patch.object(library.Op, "natively", count):
        yield served


def value_and_gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = call(x)
    (gradient,) = torch.autograd.grad(y.sin().sum(), x)
    return y, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CALLS)
def test_it_serves_ordinary_calls_with_the_same_result(name: str, dtype: torch.dtype) -> None:
    x = ordinary(dtype)
    with counted() as served:
        got = value_and_gradient(CALLS[name], x)
    assert served == [True]
    with never():
        expected = value_and_gradient(CALLS[name], x)
    torch.testing.assert_close(got, expected)


def with_value(value: float) -> Tensor:
    x = ordinary()
    x[1, 2] = value
    return x


def hidden_row() -> Tensor:
    x = ordinary()
    x[1] = -math.inf
    return x


IGNORED = torch.tensor([0, -100, 5, 1])
DECLINED: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "one feature": (fusedformer.layer_norm, torch.randn(4, 1)),
    "low precision norm": (CALLS["layer_norm"], ordinary().bfloat16()),
    "empty norm": (CALLS["layer_norm"], torch.zeros(0, 6)),
    "empty softmax": (fusedformer.softmax, torch.zeros(3, 0)),
    "hidden row": (fusedformer.softmax, hidden_row()),
    "hidden row, long": (fusedformer.softmax, torch.cat([torch.zeros(900, 6), hidden_row()])),
    "logarithm of a hidden row": (fusedformer.log_softmax, hidden_row()),
    "far gelu": (CALLS["gelu tanh"], with_value(-1e30)),
    "infinite gelu": (fusedformer.gelu, with_value(-math.inf)),
    "transposed gelu": (fusedformer.gelu, ordinary().t()),
    "infinite swiglu": (fusedformer.swiglu, with_value(-math.inf)),
    "NaN in an ignored row": (lambda x: fusedformer.cross_entropy(x, IGNORED), with_value(math.nan)),
    "smoothing": (lambda x: fusedformer.cross_entropy(x, TARGET, label_smoothing=0.1), ordinary()),
    "class weights": (lambda x: fusedformer.cross_entropy(x, TARGET, weight=W), ordinary()),
}


@pytest.mark.parametrize("name", DECLINED)
def test_it_declines_where_pytorch_differs(name: str) -> None:
    call, x = DECLINED[name]
    with counted() as served:
        got = value_and_gradient(call, x)
    assert served == [False]
    with never():
        expected = value_and_gradient(call, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("context", [
    lambda: torch.autocast("cpu", dtype=torch.bfloat16), emulation.emulated, library.by_definition,
    lambda: torch.autograd.profiler.profile(), lambda: torch.device("cpu"),
])  # fmt: skip
def test_it_declines_where_somebody_else_has_a_say(context: Callable[[], Any]) -> None:
    with counted() as served, context():
        fusedformer.softmax(ordinary())
    assert not any(served)


def test_it_declines_a_subclass() -> None:
    class Own(Tensor):
        pass

    with counted() as served:
        fusedformer.softmax(ordinary().as_subclass(Own))
    assert served == [False]


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives(name: str) -> None:
    assert torch.autograd.gradgradcheck(CALLS[name], ordinary(torch.float64).requires_grad_())
