"""The decoder: equal to torch.nn under a causal mask, blind to the future, tied to its token table."""

from collections.abc import Callable

import pytest
import torch
from models import assert_same_gradients, make_model, random_tokens, torch_layers
from torch import Tensor, nn

from fusedformer import Decoder


def torch_hidden(model: Decoder, theirs: Callable[..., Tensor], tokens: Tensor) -> Tensor:
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


def test_bad_input() -> None:
    model = make_model("decoder")
    with pytest.raises(ValueError, match="a sequence of 13 positions is longer than max_seq_len 12"):
        model(random_tokens(1, 13))
    with pytest.raises(ValueError, match=r"at least 2 tokens per sequence, got shape \(3, 1\)"):
        model.loss(random_tokens(3, 1))
    with pytest.raises(ValueError, match="tokens hold values from 3 to 40, outside a vocabulary of 19"):
        model.loss(torch.tensor([[3, 40]]))
