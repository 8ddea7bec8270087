"""How an op chooses what computes it, where there is no kernel for the device."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from fusedformer.kernels import emulation, library


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
