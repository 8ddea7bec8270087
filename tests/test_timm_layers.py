"""timm's models built with our layers: what stock timm computes with the same weights, forward and backward."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import World

from fusedformer.drop_in import calls

pytestmark = pytest.mark.op("attention")
SIZES: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm": {"qk_norm": True, "scale_attn_norm": True, "init_values": 0.5},
    "mean": {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
}


@pytest.fixture
def layers(timm: Any) -> Any:
    """Our layers; they import timm."""
    from fusedformer.drop_in import timm_layers

    return timm_layers


def make_pair(timm: Any, ours: dict[str, Any], theirs: dict[str, Any], **settings: Any) -> tuple[Any, Any]:
    """A model with our layers and stock timm's, of the same random weights."""
    create = partial(timm.create_model, "vit_tiny_patch16_224", **SIZES, **settings)
    torch.manual_seed(0)
    model, stock = create(**ours).eval(), create(**theirs).eval()
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + ("norm" in name and "weight" in name))
    assert list(model.state_dict()) == list(stock.state_dict())
    model.load_state_dict(stock.state_dict())
    return model, stock


def assert_same(model: Any, stock: Any, x: torch.Tensor) -> None:
    out, expected = model(x), stock(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for network, result in ((model, out), (stock, expected)):
        result.square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    for (name, ours), theirs in zip(model.named_parameters(), stock.parameters()):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-4 * scale + 1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_vision_transformers(timm: Any, layers: Any, world: World, kind: str) -> None:
    if world.name == "emulated" and kind != "qk_norm":
        pytest.skip("emulated world: the one with most layers, for time")
    model, stock = make_pair(timm, layers.ALL, {}, **KINDS[kind])
    for network in (model, stock):
        network.to(world.device)
    assert_same(model, stock, torch.randn(2, 3, 12, 12).to(world.device))
    found = calls.of(model.modules())
    assert found.count("attention") == found.count("gelu") == 2
    assert found.count("layer_norm") >= 5


def test_rms_norm_and_gelu_with_tanh(timm: Any, layers: Any) -> None:
    ours = {"norm_layer": layers.RmsNorm, "act_layer": layers.GELUTanh, "attn_layer": layers.Attention}
    theirs = {"norm_layer": "rmsnorm", "act_layer": "gelu_tanh"}
    model, stock = make_pair(timm, ours, theirs)
    assert_same(model, stock, torch.randn(2, 3, 12, 12))
    found = calls.of(model.modules())
    assert found.count("rms_norm") == 5
    assert found.count("gelu") == 2


def test_classes_are_timms_own(timm: Any, layers: Any) -> None:
    for name in ("Attention", "LayerNorm", "RmsNorm", "GELU", "GELUTanh"):
        assert issubclass(getattr(layers, name), getattr(timm.layers, name))


@pytest.mark.parametrize("settings", [{}, {"gated": True}, {"attn_head_dim": 4, "dim_out": 12}])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_attention_alone(timm: Any, layers: Any, mask: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = layers.Attention(16, 2, **settings), timm.layers.Attention(16, 2, **settings)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    masks: dict[str, dict[str, Any]] = {
        "none": {},
        "bool": {"attn_mask": torch.rand(2, 1, 5, 5) < 0.8},
        "float": {"attn_mask": torch.randn(5, 5)},
        "causal": {"is_causal": True},
    }
    given = masks[mask]
    torch.testing.assert_close(ours(x, **given), theirs(x, **given))


def test_dropout_is_for_training(timm: Any, layers: Any) -> None:
    layer = layers.Attention(16, 2, attn_drop=0.5)
    x = torch.randn(2, 5, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
