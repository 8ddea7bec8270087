"""`patch` of timm's vision transformers, random and small: features and gradients as before, and what served them."""

import copy
from typing import Any

import pytest
import torch
from drop_in_models import counts, loss_and_gradients, serve_everywhere
from torch import Tensor, nn

import fusedformer
from fusedformer.drop_in import timm_rules
from fusedformer.drop_in.known_source import digest

SIZES = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 5,
    "mlp_ratio": 1.5,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm": {"qk_norm": True, "init_values": 0.5},
    "timm_norm": {"norm_layer": "layernorm", "act_layer": "gelu_tanh"},
    "rms_norm": {"norm_layer": "rmsnorm", "drop_path_rate": 0.0},
}
NORMS = {"plain": 3, "qk_norm": 7, "timm_norm": 3, "rms_norm": 3}


class WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).square().mean()


@pytest.mark.parametrize("served", [True, False], ids=["served", "original"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_before(timm: Any, kind: str, served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = WithLoss(timm.models.vision_transformer.VisionTransformer(**SIZES, **KINDS[kind]))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    images = torch.randn(2, 3, 8, 8)
    before = [type(module) for module in model.modules()]
    expected = loss_and_gradients(model, images)
    if served:
        serve_everywhere(monkeypatch)
    report = fusedformer.patch(model)
    assert report.left == (), report
    for mine, theirs in zip(loss_and_gradients(model, images), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    if served:
        norm = "rms_norm" if kind == "rms_norm" else "layer_norm"
        assert counts(model) == {norm: NORMS[kind], f"add_{norm}": 2, "attention": 2, "gelu": 2}
    assert [type(module) for module in copy.deepcopy(model).modules()] == [type(module) for module in model.modules()]
    fusedformer.unpatch(model)
    assert [type(module) for module in model.modules()] == before


def test_every_digest_is_of_a_class_of_this_version(timm: Any) -> None:
    layers = timm.layers
    block = timm.models.vision_transformer.Block
    classes = (layers.Attention, block, layers.LayerNorm, layers.RmsNorm, layers.GELU, layers.GELUTanh)
    assert {digest(cls.forward) for cls in classes} == {key[0] for key in timm_rules.BY_SOURCE}


def test_fast_norm_is_left(timm: Any) -> None:
    norm = timm.layers.LayerNorm(8)
    norm._fast_norm = True
    (left,) = fusedformer.patch(norm).left
    assert left.reason.startswith("timm's fast norm is on")
