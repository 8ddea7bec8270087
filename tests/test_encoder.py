"""The encoder: equal to torch.nn layer by layer, blind to padding, pooled to unit vectors."""

import pytest
import torch
from models import TEXT, assert_same_gradients, make_model, random_tokens, torch_layers
from torch import nn

from fusedformer import Encoder, TransformerConfig
from fusedformer.transformer.outputs import pool


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_equals_torch(norm_position: str, activation: str, bias: bool) -> None:
    model = make_model("encoder", norm_position=norm_position, activation=activation, bias=bias)
    theirs = torch_layers(model.stack, model.config)
    tokens, token_types = random_tokens(3, 12), random_tokens(3, 12, vocab_size=2)
    mask = torch.arange(12) < torch.tensor([[12], [5], [1]])

    embedded = (
        model.token_embedding.weight[tokens]
        + model.position_embedding.weight
        + model.type_embedding.weight[token_types]
    )
    if norm_position == "post":
        norm = model.embedding_norm
        embedded = nn.functional.layer_norm(embedded, (32,), norm.weight, norm.bias, norm.eps)
    expected = theirs(embedded, src_key_padding_mask=~mask)
    torch.testing.assert_close(model(tokens, mask, token_types)[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_gradients_equal_torch(norm_position: str) -> None:
    model = make_model("encoder", norm_position=norm_position)
    theirs = torch_layers(model.stack, model.config)
    x, wanted = torch.randn(2, 2, 6, 32)
    nn.functional.mse_loss(model.stack(x), wanted).backward()
    nn.functional.mse_loss(theirs(x), wanted).backward()
    assert_same_gradients(model.stack, theirs)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [1, 2, 5, 6, 8]], ids=["right", "left", "holes"])
def test_padding_changes_nothing(places: list[int], pooling: str) -> None:
    model = make_model("encoder", pooling=pooling)
    tokens, padded, mask = random_tokens(1, 5), random_tokens(1, 9), torch.zeros(1, 9, dtype=torch.bool)
    padded[:, places], mask[:, places] = tokens, True
    torch.testing.assert_close(model(padded, mask)[:, places], model(tokens), rtol=0, atol=1e-6)
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
    assert torch.equal(model(tokens), model(tokens, token_type_ids=torch.zeros_like(tokens)))
    assert not torch.equal(model(tokens), model(tokens, token_type_ids=torch.ones_like(tokens)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_row_of_padding_alone(pooling: str, dtype: torch.dtype) -> None:
    model = make_model("encoder", pooling=pooling).to(dtype)
    mask = torch.tensor([[True] * 4, [False] * 4])
    assert model(random_tokens(2, 4), mask).isfinite().all()
    real, padding = model.embed(random_tokens(2, 4), mask)
    torch.testing.assert_close(real.norm().item(), 1.0, rtol=0, atol=0.01)
    assert (padding == 0).all()


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_what_stands_at_padding_does_not_leak(pooling: str) -> None:
    hidden = torch.randn(1, 3, 4)
    hidden[0, 0] = torch.nan
    hidden.requires_grad_()
    pooled = pool(hidden, pooling, torch.tensor([[False, True, True]]))
    expected = hidden[:, 1] if pooling == "class" else hidden[:, 1:].mean(dim=1)
    torch.testing.assert_close(pooled, expected)
    (gradient,) = torch.autograd.grad(pooled.sum(), hidden)
    assert (gradient[0, 0] == 0).all()


@pytest.mark.parametrize(("dtype", "value", "length"), [(torch.float16, 40.0, 2000), (torch.bfloat16, 1.0, 257)])
def test_means_are_computed_in_float32(dtype: torch.dtype, value: float, length: int) -> None:
    # The sum overflows float16; bfloat16 has no 257, the number of positions.
    hidden, mask = torch.full((1, length, 2), value, dtype=dtype), torch.ones(1, length, dtype=torch.bool)
    hidden[:, 0] = 0
    assert torch.equal(pool(hidden, "mean", mask), hidden.double().mean(dim=1).to(dtype))


def test_unit_length_of_large_vectors_in_float16() -> None:
    model = make_model("encoder").half()
    with torch.no_grad():
        model.stack.blocks[-1].feed_forward_residual.norm.weight.mul_(500)
    norms = model.embed(random_tokens(2, 4)).float().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2), rtol=0, atol=0.01)


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
    with pytest.raises(ValueError, match=r"token_type_ids have shape \(1, 6\), tokens \(2, 6\)"):
        model(tokens, token_type_ids=torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="token_type_ids hold values from 2 to 2, outside a vocabulary of 2"):
        model(tokens, token_type_ids=torch.full_like(tokens, 2))
    with pytest.raises(ValueError, match="token_type_ids were given, but the configuration has type_vocab_size 0"):
        Encoder(TransformerConfig(**TEXT))(tokens, token_type_ids=tokens)
    with pytest.raises(ValueError, match="tokens must be a tensor, got list"):
        model(tokens.tolist())
    with pytest.raises(ValueError, match="tokens must be on cpu, where the weights are, got meta"):
        model(tokens.to("meta"))
    with pytest.raises(ValueError, match="attention_mask must be on cpu, where the weights are, got meta"):
        model(tokens, torch.ones(2, 6, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="attention_mask must be a tensor, got list"):
        model.embed(tokens, [[True] * 6] * 2)
    with pytest.raises(ValueError, match="token_type_ids must be a tensor, got int"):
        model(tokens, token_type_ids=0)
