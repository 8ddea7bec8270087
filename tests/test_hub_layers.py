"""Our layers by `kernelize` of Hugging Face's `kernels`, from a local repository."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fusedformer
from fusedformer.drop_in import calls, hub_layers

hub: Any = pytest.importorskip("kernels", reason="Hugging Face's kernels is not installed")


class LlamaNorm(nn.Module):
    """As in transformers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.variance_epsilon = 1e-3

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mean = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(mean + self.variance_epsilon))


class QwenNorm(nn.RMSNorm):
    """With `eps`, as in others."""


class Tanh(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x, approximate="tanh")


class Erf(nn.GELU):
    pass


class Layer(nn.LayerNorm):
    pass


NAMED = {LlamaNorm: "RMSNorm", QwenNorm: "RMSNorm", Tanh: "NewGELU", Erf: "GeLU", Layer: "LayerNorm"}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(LlamaNorm(8), QwenNorm(8, eps=1e-2), Tanh(), Erf(), Layer((3, 8)), Layer(8, bias=False))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """The names that classes carry for `kernels`, as its decorator gives them."""
    for cls, name in NAMED.items():
        hub.replace_kernel_forward_from_hub(cls, name)
    yield
    for cls in NAMED:
        del cls.kernel_layer_name  # type: ignore[attr-defined]
        del cls.kernel_condition  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["INFERENCE", "TRAINING"])
def test_kernelize(tmp_path: Path, mode: str) -> None:
    model, x = make_model(), torch.randn(2, 3, 8)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), [model[0].weight])  # type: ignore[index]
    keys = list(model.state_dict())
    with hub.use_kernel_mapping(hub_layers.kernel_mapping(tmp_path / "hub"), inherit_mapping=False):
        chosen = hub.Mode[mode] | hub.Mode.TORCH_COMPILE
        model = hub.kernelize(model, mode=chosen, device="cpu", use_fallback=False)
    out = model(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), [model[0].weight])[0], gradient)
    assert list(model.state_dict()) == keys
    found = calls.of(model.modules())
    assert {op: found.count(op) for op in ("rms_norm", "layer_norm", "gelu")} == {
        "rms_norm": 2, "layer_norm": 2, "gelu": 2
    }  # fmt: skip


def test_the_repository_is_what_kernels_reads(tmp_path: Path) -> None:
    folder = hub_layers.write_repository(tmp_path / "a" / "b")
    assert hub_layers.write_repository(folder) == folder
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [f"build/{hub_layers.VARIANT}/{name}" for name in ("__init__.py", "metadata.json")]
    assert json.loads((folder / files[1]).read_text())["name"] == "fusedformer"
    assert hub.get_local_kernel(folder).layers is hub_layers
    assert sys.modules["fusedformer"] is fusedformer  # and not the repository


def test_bad_input_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, expected a folder or nothing"):
        hub_layers.write_repository(tmp_path / "file")
    # What a link of that name in the folder of a clone amounts to.
    monkeypatch.setitem(sys.modules, "kernels", ModuleType("kernels"))
    with pytest.raises(ImportError, match="needs Hugging Face's kernels"):
        hub_layers.kernel_mapping(tmp_path / "hub")
