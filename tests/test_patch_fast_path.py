"""PyTorch's own fast paths do not get in the way: our functions serve in every mode, with padding and with weights."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from drop_in_models import counts, serve_everywhere
from torch import Tensor, nn

import fusedformer

MODES = ("train", "eval", "no_grad")


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_everywhere(monkeypatch)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "no_grad":
            stack.enter_context(torch.no_grad())
        yield request.param


def make_encoder(**settings: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, nn.GELU(), batch_first=True, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not settings)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder(mode: str, padded: bool, norm_first: bool) -> None:
    encoder = make_encoder(**({"norm_first": True} if norm_first else {})).train(mode == "train")
    x, padding = torch.randn(2, 5, 16), torch.arange(5) >= torch.tensor([[5], [3]])
    inputs = {"src_key_padding_mask": padding} if padded else {}
    expected = encoder(x, **inputs)
    with fusedformer.patch(encoder):
        out = encoder(x, **inputs)
        norms = {"add_layer_norm": 2, "layer_norm": 2} if norm_first else {"add_layer_norm": 4}
        assert counts(encoder) == norms | {"attention": 2, "gelu": 2}
    seen = ~padding if padded else torch.ones_like(padding)
    torch.testing.assert_close(out[seen], expected[seen], rtol=1e-5, atol=1e-5)


def test_without_patch_no_module_is_asked() -> None:
    """What the test before this one is about: PyTorch's encoder in evaluation asks none of its modules."""
    encoder = make_encoder().eval()
    asked: list[int] = []
    for layer in encoder.layers:
        layer.register_module("norm1", Asked(asked))
    with torch.no_grad():
        encoder(torch.randn(2, 5, 16))
    assert asked == []


class Asked(nn.LayerNorm):
    def __init__(self, asked: list[int]) -> None:
        super().__init__(16)
        self.asked = asked

    def forward(self, input: Tensor) -> Tensor:
        self.asked.append(1)
        return super().forward(input)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention(mode: str, need_weights: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).train(mode == "train")
    x = torch.randn(2, 5, 16)
    expected = attention(x, x, x, need_weights=need_weights)
    fusedformer.patch(attention)
    out, weights = attention(x, x, x, need_weights=need_weights)
    assert counts(attention) == {"attention": 1}
    torch.testing.assert_close(out, expected[0], rtol=1e-5, atol=1e-5)
    assert (weights is None) == (expected[1] is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected[1], rtol=1e-5, atol=1e-5)


def test_decoder(mode: str) -> None:
    torch.manual_seed(0)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True), 2)
    decoder.train(mode == "train")
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    expected = decoder(x, memory, tgt_mask=mask)
    fusedformer.patch(decoder)
    torch.testing.assert_close(decoder(x, memory, tgt_mask=mask), expected, rtol=1e-5, atol=1e-5)
    assert counts(decoder) == {"attention": 4, "add_layer_norm": 6}
