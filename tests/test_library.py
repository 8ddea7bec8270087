"""How an op chooses what computes it, where there is no kernel for the device."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusedformer.kernels import emulation, library, softmax


@pytest.fixture
def cuda_tensor() -> torch.Tensor:
    """As far as is asked here."""
    return SimpleNamespace(is_cuda=True)  # type: ignore[return-value]


def choose(first: torch.Tensor) -> str:
    return library._without_kernel(lambda _: "emulated", lambda _: "PyTorch", first)


def test_emulation_is_for_cpu_tensors(cuda_tensor: torch.Tensor) -> None:
    with emulation.emulated():
        assert choose(torch.ones(1)) == "emulated"
        assert choose(cuda_tensor) == "PyTorch"
    with emulation.emulated(False):
        assert choose(torch.ones(1)) == "PyTorch"


def test_a_broken_extension_is_reported_once_at_the_callers_line(
    cuda_tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "extension_status", lambda: "not loadable: undefined symbol")
    library._warn_once_of_broken_extension.cache_clear()
    with pytest.warns(UserWarning, match="not loadable: undefined symbol; PyTorch computes instead") as caught:
        assert choose(cuda_tensor) == choose(cuda_tensor) == "PyTorch"
    assert [warning.filename for warning in caught] == [__file__]


def test_a_missing_extension_is_not_reported(cuda_tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "extension_status", lambda: "not built: no nvcc")
    library._warn_once_of_broken_extension.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(cuda_tensor)
    library._warn_once_of_broken_extension.cache_clear()


class Watch(TorchDispatchMode):
    """Notes the names of the ops that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_plain_call_does_not_go_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("dispatched")

    monkeypatch.setattr(softmax.softmax_fwd, "_dispatched", refuse)
    monkeypatch.setattr(softmax.softmax_bwd, "_dispatched", refuse)
    x = torch.ones(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(softmax.softmax(x)[0, 0], x)
    assert gradient[1].eq(0).all()


def test_a_mode_sees_the_ops_of_both_directions() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with Watch() as watch:
        softmax.softmax(x).sum().backward()
    assert {"fusedformer.softmax_fwd.default", "fusedformer.softmax_bwd.default"} <= set(watch.seen)


def test_a_profiler_sees_an_op() -> None:
    with torch.profiler.profile() as profile:
        softmax.softmax(torch.ones(2, 3))
    assert "fusedformer::softmax_fwd" in {event.key for event in profile.key_averages()}


def test_a_subclass_of_tensor_sees_an_op() -> None:
    class Named(torch.Tensor):
        pass

    assert isinstance(softmax.softmax(torch.ones(2, 3).as_subclass(Named)), Named)


def test_meta_tensors_get_shapes_alone() -> None:
    assert softmax.softmax(torch.empty(2, 3, device="meta")).shape == (2, 3)
