"""Decoding token by token: with a cache as without, sampling as configured, seeds, stops and overflow."""

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Decoder, EncoderDecoder
from fusedformer.transformer.generation import Sampler
from fusedformer.transformer.parts import KeyValueCache


def generate_without_cache(model: Decoder, tokens: Tensor, max_new_tokens: int, sampler: Sampler) -> Tensor:
    with torch.no_grad():
        for _ in range(max_new_tokens):
            tokens = torch.cat([tokens, sampler(model(tokens)[:, -1]).unsqueeze(1)], dim=1)
    return tokens


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("prompt", [1, 5])
def test_cache_changes_no_token(prompt: int, temperature: float) -> None:
    model = make_model("decoder")
    tokens = random_tokens(4, prompt)
    cached = model.generate(tokens, 7, temperature, top_k=6, generator=seeded(1))
    uncached = generate_without_cache(model, tokens, 7, Sampler(temperature, 6, seeded(1)))
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :prompt], tokens)


def test_cached_logits_equal_whole_logits() -> None:
    model = make_model("decoder")
    tokens = random_tokens(3, 12)
    caches = model.stack.new_caches(12)
    pieces = [model.hidden(piece, caches) for piece in tokens.split([4, 1, 3, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(tokens), rtol=0, atol=1e-5)


def test_encoder_decoder_cache_changes_no_token() -> None:
    model = make_model("encoder_decoder", start_token=2)
    source = random_tokens(4, 10)
    mask = torch.arange(10) < torch.tensor([[10], [3], [7], [1]])
    expected = torch.full((4, 1), 2)
    for _ in range(12):
        logits = model.decode(expected, model.encode(source, mask))
        expected = torch.cat([expected, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(model.generate(source, 12, mask), expected[:, 1:])


def test_stop_token_ends_each_row_by_itself() -> None:
    model = make_model("encoder_decoder")
    source = random_tokens(16, 10)
    free = model.generate(source, 12)
    stop = int(free[0, 4])
    stopped = model.generate(source, 12, stop_token=stop)
    for row, expected in zip(stopped.tolist(), free.tolist(), strict=True):
        end = expected.index(stop) if stop in expected else 12
        assert row == expected[:end] + [stop] * (12 - end)


def test_seeds_reproduce() -> None:
    model, tokens = make_model("decoder"), random_tokens(8, 2)
    first, same, other = (model.generate(tokens, 10, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    from_global = model.generate(tokens, 10)
    torch.manual_seed(3)
    assert torch.equal(model.generate(tokens, 10), from_global)


def test_sampled_frequencies() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.2, 0.1])
    logits = probabilities.log().expand(20_000, 4)

    def frequencies(sampler: Sampler) -> Tensor:
        return torch.bincount(sampler(logits), minlength=4) / len(logits)

    torch.testing.assert_close(frequencies(Sampler(generator=seeded(0))), probabilities, rtol=0, atol=0.02)
    sharper = probabilities.square() / probabilities.square().sum()
    torch.testing.assert_close(frequencies(Sampler(0.5, generator=seeded(0))), sharper, rtol=0, atol=0.02)
    assert frequencies(Sampler(top_k=1, generator=seeded(0)))[0] == 1
    # Tokens 1 and 2 are equally probable: still exactly two tokens are kept.
    assert (frequencies(Sampler(top_k=2, generator=seeded(0))) > 0).sum() == 2
    assert (frequencies(Sampler(top_k=99, generator=seeded(0))) > 0).all()


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.randn(50, 19, generator=seeded(0))
    assert torch.equal(Sampler(1e-30)(logits), logits.argmax(dim=1))
    assert torch.equal(Sampler(0)(logits), logits.argmax(dim=1))


def test_dropout_is_off_and_comes_back() -> None:
    model = make_model("decoder", dropout=0.5)
    model.stack.eval()
    tokens = random_tokens(4, 2)
    assert torch.equal(model.generate(tokens, 10, 0), model.generate(tokens, 10, 0))
    assert model.training
    assert model.dropout.training
    assert not model.stack.training


def test_fills_the_context_and_keeps_the_dtype() -> None:
    model, tokens = make_model("decoder"), random_tokens(2, 5).int()
    assert model.generate(tokens, 7, 0).shape == (2, 12)
    assert model.generate(tokens, 7, 0).dtype == torch.int32
    assert torch.equal(model.generate(tokens, 0), tokens)
    assert model.generate(tokens[:0], 7).shape == (0, 12)
    assert not model.generate(tokens, 2).requires_grad


def test_bad_input() -> None:
    decoder: Decoder = make_model("decoder")
    tokens = random_tokens(2, 5)
    with pytest.raises(ValueError, match="a prompt of 5 tokens and 8 new ones overflow the context of 12"):
        decoder.generate(tokens, 8)
    with pytest.raises(ValueError, match="max_new_tokens must not be negative, got -1"):
        decoder.generate(tokens, -1)
    with pytest.raises(ValueError, match=r"S at least 1, got torch.int64 of \(2, 0\)"):
        decoder.generate(tokens[:, :0], 3)
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature must be finite and at least 0, got {temperature}"):
            decoder.generate(tokens, 3, temperature)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        decoder.generate(tokens, 3, top_k=0)
    encoder_decoder: EncoderDecoder = make_model("encoder_decoder")
    with pytest.raises(ValueError, match="13 new ones overflow the context of 12"):
        encoder_decoder.generate(tokens, 13)
    with pytest.raises(ValueError, match="stop_token 19 is outside a vocabulary of 19"):
        encoder_decoder.generate(tokens, 3, stop_token=19)
    with pytest.raises(ValueError, match="a cache of 3 positions cannot hold 4"):
        KeyValueCache(3).append(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2))
