"""The decoder: equal to torch.nn under a causal mask, blind to the future, tied to its token table."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import assert_same_gradients, make_model, random_tokens, torch_layers
from torch import Tensor, nn


def torch_hidden(model: Any, theirs: Callable[..., Tensor], tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
    embedded = model.token_embedding.weight[tokens] + model.position_embedding.weight[:length]
    return theirs(embedded, src_mask=nn.Transformer.generate_square_subsequent_mask(length))


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_equals_torch(norm_position: str, tie_embeddings: bool) -> None:
    model = make_model("decoder", norm_position=norm_position, n_kv_heads=None, tie_embeddings=tie_embeddings)
    theirs = torch_layers(model.stack, model.config)
    tokens = random_tokens(3, 12)
    hidden = torch_hidden(model, theirs, tokens)
    torch.testing.assert_close(model.hidden(tokens), hidden, rtol=0, atol=1e-5)
    head = model.token_embedding.weight if tie_embeddings else model.head.weight
    expected = hidden @ head.T
    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)
    expected_loss = nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.loss(tokens), expected_loss)


def test_gradients_equal_torch() -> None:
    model = make_model("decoder", n_kv_heads=None)
    theirs = torch_layers(model.stack, model.config)
    tokens = random_tokens(3, 12)
    model.hidden(tokens).square().mean().backward()
    torch_hidden(model, theirs, tokens).square().mean().backward()
    assert_same_gradients(model.stack, theirs)


def test_grouped_heads_equal_repeated_heads() -> None:
    grouped, full = make_model("decoder", n_kv_heads=1), make_model("decoder", n_kv_heads=2)
    full.load_state_dict({name: repeat_heads(name, tensor) for name, tensor in grouped.state_dict().items()})
    tokens = random_tokens(3, 12)
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=0, atol=1e-5)


def repeat_heads(name: str, tensor: Tensor) -> Tensor:
    """The one key and the one value head of a `qkv` tensor twice each, after its two query heads."""
    if ".qkv." not in name:
        return tensor
    query, key, value = tensor.split([32, 16, 16])
    return torch.cat([query, key, key, value, value])


def test_the_future_does_not_change_the_past() -> None:
    model = make_model("decoder")
    tokens = random_tokens(2, 12)
    logits = model(tokens)
    for position in range(1, 12):
        changed = tokens.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 19
        torch.testing.assert_close(model(changed)[:, :position], logits[:, :position], rtol=0, atol=1e-6)
        assert not torch.allclose(model(changed)[:, position], logits[:, position])


def test_the_past_changes_the_future() -> None:
    model = make_model("decoder").double()
    embedded = model.token_embedding(random_tokens(1, 12)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.stack(embedded)[0, -1].square().sum(), embedded)
    assert (gradient[0].abs().amax(dim=1) > 0).all()


PLACES = {"right": [0, 1, 2, 3, 4], "left": [4, 5, 6, 7, 8], "holes": [1, 2, 5, 6, 8]}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_padding_changes_nothing(places: list[int]) -> None:
    model = make_model("decoder")
    tokens, padded, mask = random_tokens(1, 5), random_tokens(1, 9), torch.zeros(1, 9, dtype=torch.bool)
    padded[:, places], mask[:, places] = tokens, True
    torch.testing.assert_close(model(padded, mask)[:, places], model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_padded_rows(side: str) -> None:
    model = make_model("decoder")
    rows = [random_tokens(1, length) for length in (9, 5, 2)]
    padded, mask = random_tokens(3, 9), torch.zeros(3, 9, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(0, row.shape[1]) if side == "right" else slice(9 - row.shape[1], 9)
        padded[index, place], mask[index, place] = row[0], True
    # A mean over tokens, not over rows: each row weighs as many tokens as it predicts.
    expected = sum(model.loss(row) * (row.shape[1] - 1) for row in rows) / (8 + 4 + 1)
    torch.testing.assert_close(model.loss(padded, mask), expected)


def test_loss_of_nothing_is_zero() -> None:
    model = make_model("decoder")
    tokens = random_tokens(2, 5)
    for loss in (
        model.loss(tokens, torch.zeros(2, 5, dtype=torch.bool)),
        model.loss(tokens, torch.tensor([[False] * 4 + [True]] * 2)),  # there is nothing to predict it from
        model.loss(tokens[:0]),
    ):
        loss.backward()
        assert loss == 0
    assert all((p.grad is None or (p.grad == 0).all()) for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = make_model("decoder").to(dtype)
    tokens = random_tokens(3, 12)
    loss = model.loss(tokens)
    logits = model(tokens[:, :-1]).double().flatten(0, 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).float())


def test_bad_input() -> None:
    model = make_model("decoder")
    with pytest.raises(ValueError, match=r"attention_mask must be bool .* \(2, 5\), got torch.bool of \(2, 4\)"):
        model(random_tokens(2, 5), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"attention_mask must be bool .* \(2, 5\), got torch.int64 of \(2, 5\)"):
        model.loss(random_tokens(2, 5), torch.ones(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="tokens must be on cpu, where the weights are, got meta"):
        model.loss(random_tokens(2, 5).to("meta"))
    with pytest.raises(ValueError, match="a sequence of 13 positions is longer than max_seq_len 12"):
        model(random_tokens(1, 13))
    with pytest.raises(ValueError, match=r"at least 2 tokens per sequence, got shape \(3, 1\)"):
        model.loss(random_tokens(3, 1))
    with pytest.raises(ValueError, match="tokens hold values from 3 to 40, outside a vocabulary of 19"):
        model.loss(torch.tensor([[3, 40]]))
