"""`nn.MultiheadAttention` and the layers around it: constructor, state_dict, values and gradients of `torch.nn`'s."""

import re
from typing import Any

import pytest
import torch
from conftest import World
from torch import Tensor, nn

import fusedformer

E, HEADS = 16, 4
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "widths": {"kdim": 8, "vdim": 12},
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True, "bias": False},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 8, "batch_first": True},
}
HIDDEN = torch.ones(3, 3, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False, False, False], [False, False, True]])
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "added": {"attn_mask": torch.linspace(-1, 1, 9).reshape(3, 3), "key_padding_mask": PADDING * -5.0},
    "per_head": {"attn_mask": HIDDEN.expand(2 * HEADS, 3, 3), "average_attn_weights": False},
    "causal": {"attn_mask": HIDDEN, "is_causal": True, "need_weights": False},
    "causal_weights": {"attn_mask": HIDDEN, "is_causal": True},
    "causal_padding": {"attn_mask": HIDDEN, "is_causal": True, "key_padding_mask": PADDING},
}


def pair(cls: str, device: torch.device, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """PyTorch's module and ours with its weights, drawn alike."""
    torch.manual_seed(0)
    theirs = getattr(nn, cls)(*args, **kwargs)
    torch.manual_seed(0)
    ours = getattr(fusedformer.nn, cls)(*args, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, getattr(nn, cls))
    return theirs.to(device), ours.to(device)


def assert_same(theirs: nn.Module, ours: nn.Module, expected: Any, found: Any) -> None:
    """Outputs, and gradients of all parameters."""
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    for outputs in (expected, found):
        sum(x.square().sum() for x in outputs if x is not None).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.op("attention")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_multihead_attention(world: World, kind: str, mask: str) -> None:
    if world.name == "emulated" and (kind != "all" or mask not in ("padding", "causal_padding")):
        pytest.skip("emulated world: one module, for time")
    theirs, ours = pair("MultiheadAttention", world.device, E, HEADS, **KINDS[kind])
    batch_first = KINDS[kind].get("batch_first", False)
    inputs = [
        torch.randn((2, 3, width) if batch_first else (3, 2, width)).to(world.device)
        for width in (E, KINDS[kind].get("kdim", E), KINDS[kind].get("vdim", E))
    ]
    settings = {name: x.to(world.device) if isinstance(x, Tensor) else x for name, x in MASKS[mask].items()}
    # PyTorch's own heeds the hint without weights alone, and hides the further keys by it, which the mask does not.
    assert_same(theirs, ours, theirs(*inputs, **settings | {"is_causal": False}), ours(*inputs, **settings))


@pytest.mark.parametrize("shared", [1, 2])
def test_shared_inputs_and_no_batch(shared: int) -> None:
    theirs, ours = pair("MultiheadAttention", torch.device("cpu"), E, HEADS)
    x, memory = torch.randn(3, E), torch.randn(5, E)
    inputs = (x, x, x) if shared == 1 else (x, memory, memory)
    mask = torch.zeros(len(inputs[1]), dtype=torch.bool)
    mask[-1] = True
    assert_same(theirs, ours, theirs(*inputs, key_padding_mask=mask), ours(*inputs, key_padding_mask=mask))


def test_a_query_without_keys_gives_the_bias() -> None:
    """PyTorch gives NaN there."""
    attention = fusedformer.nn.MultiheadAttention(E, HEADS, batch_first=True)
    x = torch.randn(1, 3, E)
    out, weights = attention(x, x, x, key_padding_mask=torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(out, attention.out_proj.bias.expand(1, 3, E))
    assert torch.equal(weights, torch.zeros(1, 3, 3))


def test_weights_are_those_before_dropout() -> None:
    attention = fusedformer.nn.MultiheadAttention(E, HEADS, dropout=0.5)
    x = torch.randn(3, 2, E)
    _, weights = attention(x, x, x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(weights, attention.eval()(x, x, x)[1])


@pytest.mark.op("add_layer_norm")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_layers(world: World, kind: str, norm_first: bool, activation: str) -> None:
    if world.name == "emulated" and (activation == "relu" or norm_first):
        pytest.skip("emulated world: one encoder and one decoder, for time")
    settings = {"norm_first": norm_first, "activation": activation, "dropout": 0.0}
    theirs, ours = pair(f"Transformer{kind}Layer", world.device, E, HEADS, 24, **settings)
    inputs = [torch.randn(3, 2, E).to(world.device) for _ in range(1 + (kind == "Decoder"))]
    mask = HIDDEN.to(world.device)
    assert_same(theirs, ours, [theirs(*inputs, mask)], [ours(*inputs, mask)])


def test_dropout_of_layers_is_drawn_while_training_only() -> None:
    layer = fusedformer.nn.TransformerEncoderLayer(E, HEADS, 24, dropout=0.5)
    x = torch.randn(3, 2, E)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_hooks_of_norms_and_dropouts_run() -> None:
    layer, seen = fusedformer.nn.TransformerEncoderLayer(E, HEADS, 24), []
    layer.norm1.register_forward_hook(lambda *_: seen.append("norm"))
    layer.dropout2.register_forward_hook(lambda *_: seen.append("dropout"))
    layer(torch.randn(3, 2, E))
    assert seen == ["norm", "dropout"]


X = torch.randn(3, 2, E)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ((X, X, X[0]), {}, "value has shape (2, 16): expected two dimensions each, or three"),
        ((X, X[..., :5], X), {}, "key has 5 features, expected 16"),
        ((X, X, X[:2]), {}, "key has shape (3, 2, 16), value (2, 2, 16): expected as many of each"),
        ((X, X, X), {"is_causal": True}, "is_causal is True and attn_mask is None"),
        ((X, X, X), {"attn_mask": HIDDEN[:2]}, "attn_mask has shape (2, 3), expected (3, 3) or (8, 3, 3)"),
        ((X, X, X), {"key_padding_mask": PADDING[0]}, "key_padding_mask has shape (3,), expected (2, 3)"),
        ((X, X, X), {"attn_mask": HIDDEN.int()}, "attn_mask is int32, expected bool or floating point"),
    ],
)
def test_bad_inputs_are_named(inputs: tuple[Tensor, ...], settings: dict[str, Any], message: str) -> None:
    attention = fusedformer.nn.MultiheadAttention(E, HEADS)
    with pytest.raises(ValueError, match=f"MultiheadAttention: .*{re.escape(message)}"):
        attention(*inputs, **settings)
