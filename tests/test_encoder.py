"""The encoder: equal to torch.nn layer by layer, blind to padding, pooled to unit vectors."""

import pytest
import torch
from models import TEXT, assert_same_gradients, make_model, random_tokens, torch_layers
from torch import nn

from fusedformer import Encoder, TransformerConfig


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_equals_torch(norm_position: str, activation: str, bias: bool) -> None:
    model = make_model("encoder", norm_position=norm_position, activation=activation, bias=bias)
    theirs = torch_layers(model.stack, model.config)
    tokens, types = random_tokens(3, 12), random_tokens(3, 12, vocab_size=2)
    mask = torch.arange(12) < torch.tensor([[12], [5], [1]])

    embedded = (
        model.token_embedding.weight[tokens] + model.position_embedding.weight + model.type_embedding.weight[types]
    )
    if norm_position == "post":
        norm = model.embedding_norm
        embedded = nn.functional.layer_norm(embedded, (32,), norm.weight, norm.bias, norm.eps)
    expected = theirs(embedded, src_key_padding_mask=~mask)
    torch.testing.assert_close(model(tokens, mask, types)[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_gradients_equal_torch(norm_position: str) -> None:
    model = make_model("encoder", norm_position=norm_position)
    theirs = torch_layers(model.stack, model.config)
    x, wanted = torch.randn(2, 2, 6, 32)
    nn.functional.mse_loss(model.stack(x), wanted).backward()
    nn.functional.mse_loss(theirs(x), wanted).backward()
    assert_same_gradients(model.stack, theirs)


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_padding_changes_nothing(pooling: str) -> None:
    model = make_model("encoder", pooling=pooling)
    tokens = random_tokens(1, 5)
    padded = torch.cat([tokens, random_tokens(1, 4)], dim=1)
    mask = (torch.arange(9) < 5).unsqueeze(0)
    torch.testing.assert_close(model(padded, mask)[:, :5], model(tokens), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.embed(padded, mask), model.embed(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_embeddings_are_pooled_unit_vectors(pooling: str) -> None:
    model = make_model("encoder", pooling=pooling)
    tokens = random_tokens(2, 7)
    hidden = model(tokens)
    pooled = hidden[:, 0] if pooling == "class" else hidden.sum(dim=1) / 7
    torch.testing.assert_close(model.embed(tokens), pooled / pooled.norm(dim=1, keepdim=True))


def test_token_types_default_to_zero() -> None:
    model = make_model("encoder")
    tokens = random_tokens(2, 7)
    assert torch.equal(model(tokens), model(tokens, types=torch.zeros_like(tokens)))
    assert not torch.equal(model(tokens), model(tokens, types=torch.ones_like(tokens)))


def test_a_row_of_padding_alone_is_finite() -> None:
    model = make_model("encoder")
    mask = torch.tensor([[True] * 4, [False] * 4])
    assert model(random_tokens(2, 4), mask).isfinite().all()
    assert model.embed(random_tokens(2, 4), mask).isfinite().all()


def test_int32_tokens() -> None:
    model, tokens = make_model("encoder"), random_tokens(2, 4)
    assert torch.equal(model(tokens), model(tokens.int()))


def test_bad_input() -> None:
    model = make_model("encoder")
    tokens = random_tokens(2, 6)
    with pytest.raises(ValueError, match=r"tokens must be int32 or int64 of shape \(B, S\).*torch.float32 of \(2, 6\)"):
        model(tokens.float())
    with pytest.raises(ValueError, match=r"S at least 1, got torch.int64 of \(6,\)"):
        model(tokens[0])
    with pytest.raises(ValueError, match=r"S at least 1, got torch.int64 of \(2, 0\)"):
        model(tokens[:, :0])
    with pytest.raises(ValueError, match="tokens hold values from -1 to 19, outside a vocabulary of 19"):
        model(torch.tensor([[-1, 19]]))
    with pytest.raises(ValueError, match="a sequence of 13 positions is longer than max_seq_len 12"):
        model(random_tokens(1, 13))
    with pytest.raises(
        ValueError, match=r"mask must be bool of the tokens' shape \(2, 6\), got torch.int64 of \(2, 6\)"
    ):
        model(tokens, torch.ones_like(tokens))
    with pytest.raises(ValueError, match=r"mask must be bool .* got torch.bool of \(2, 5\)"):
        model(tokens, torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"token types have shape \(1, 6\), the tokens \(2, 6\)"):
        model(tokens, types=torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="token types hold values from 2 to 2, outside a vocabulary of 2"):
        model(tokens, types=torch.full_like(tokens, 2))
    with pytest.raises(ValueError, match="token types were given, but the configuration has type_vocab_size 0"):
        Encoder(TransformerConfig(**TEXT))(tokens, types=tokens)
