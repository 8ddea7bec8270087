"""Decoding token by token: with a cache as without, sampling as configured, seeds, stops and overflow."""

import inspect
from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Decoder
from fusedformer.transformer.cache import KeyValueCache
from fusedformer.transformer.generation import Sampler


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
    cached = model.generate(tokens, 7, temperature=temperature, top_k=6, generator=seeded(1))
    uncached = generate_without_cache(model, tokens, 7, Sampler(temperature, 6, seeded(1)))
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :prompt], tokens)


def test_cached_logits_equal_whole_logits() -> None:
    model = make_model("decoder")
    tokens = random_tokens(3, 12)
    caches = model.stack.new_caches(12)
    pieces = [model.hidden(piece, caches=caches) for piece in tokens.split([4, 1, 3, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(tokens), rtol=0, atol=1e-5)


def test_encoder_decoder_cache_changes_no_token() -> None:
    model = make_model("encoder_decoder", decoder_start_token_id=2)
    source = random_tokens(4, 10)
    mask = torch.arange(10) < torch.tensor([[10], [3], [7], [1]])
    expected = torch.full((4, 1), 2)
    for _ in range(12):
        logits = model.decode(expected, model.encode(source, mask))
        expected = torch.cat([expected, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(model.generate(source, 12, attention_mask=mask, temperature=0), expected[:, 1:])


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_eos_ends_each_row_by_itself(kind: str) -> None:
    model = make_model(kind)
    prompts = random_tokens(16, 2)
    free = model.generate(prompts, 10, temperature=0)[:, -10:]
    eos = int(free[0, 4])
    stopped = model.generate(prompts, 10, temperature=0, eos_token_id=eos)[:, -10:]
    for row, expected in zip(stopped.tolist(), free.tolist(), strict=True):
        end = expected.index(eos) if eos in expected else 10
        assert row == expected[:end] + [eos] * (10 - end)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_padded_prompts_equal_single_runs(kind: str) -> None:
    model = make_model(kind)
    prompts = [random_tokens(1, length) for length in (6, 3, 1)]
    padded, mask = random_tokens(3, 6), torch.arange(6) >= torch.tensor([[0], [3], [5]])
    for row, prompt in zip(padded, prompts, strict=True):
        row[6 - prompt.shape[1] :] = prompt[0]
    together = model.generate(padded, 6, attention_mask=mask, temperature=0)[:, -6:]
    alone = torch.cat([model.generate(prompt, 6, temperature=0)[:, -6:] for prompt in prompts])
    assert torch.equal(together, alone)


def test_padded_prompts_have_the_logits_of_single_runs() -> None:
    model = make_model("decoder")
    tokens = random_tokens(1, 8)
    padded, mask = torch.cat([random_tokens(1, 3), tokens], dim=1), (torch.arange(11) >= 3).unsqueeze(0)
    caches = model.stack.new_caches(11)
    pieces = [
        model.hidden(padded[:, start:end], mask[:, :end], caches) for start, end in ((0, 5), (5, 6), (6, 9), (9, 11))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, 3:], model.hidden(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_float32(dtype: torch.dtype) -> None:
    # As wide apart as float16 goes: in it, the difference is -inf, and the smaller logit could never be drawn.
    logits = torch.tensor([[60000.0, -60000.0]]).to(dtype).expand(2000, 2)
    frequencies = torch.bincount(Sampler(1e6, generator=seeded(0))(logits), minlength=2) / 2000
    expected = torch.softmax(torch.tensor([0.06, -0.06]), dim=0)
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.04)


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
    assert torch.equal(model.generate(tokens, 10, temperature=0), model.generate(tokens, 10, temperature=0))
    assert model.training
    assert model.dropout.training
    assert not model.stack.training


def test_fills_the_context_and_keeps_the_dtype() -> None:
    model, tokens = make_model("decoder"), random_tokens(2, 5).int()
    assert model.generate(tokens, 7, temperature=0).shape == (2, 12)
    assert model.generate(tokens, 7, temperature=0).dtype == torch.int32
    assert torch.equal(model.generate(tokens, 0), tokens)
    assert model.generate(tokens[:0], 7).shape == (0, 12)
    assert not model.generate(tokens, 2).requires_grad


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_one_signature(kind: str) -> None:
    model = make_model(kind)
    signature = inspect.signature(model.generate).parameters
    assert list(signature)[1:] == [
        "max_new_tokens",
        "attention_mask",
        "eos_token_id",
        "temperature",
        "top_k",
        "generator",
    ]
    first, same, other = (
        model.generate(random_tokens(8, 2), 10, top_k=9, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 13}, "13 new ones overflow the context of 12"),
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer, at least 0, got -1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, at least 0, got 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be an integer, at least 0, got True"),
        ({"temperature": -0.1}, "temperature must be a finite number, at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number, at least 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be a finite number, at least 0, got inf"),
        ({"temperature": "hot"}, "temperature must be a finite number, at least 0, got 'hot'"),
        ({"top_k": 0}, "top_k must be an integer, at least 1, got 0"),
        ({"top_k": 2.5}, "top_k must be an integer, at least 1, got 2.5"),
        ({"eos_token_id": 1.5}, "eos_token_id must be an integer, at least 0, got 1.5"),
        ({"eos_token_id": -1}, "eos_token_id must be an integer, at least 0, got -1"),
        ({"eos_token_id": 19}, "eos_token_id 19 is outside a vocabulary of 19"),
        ({"generator": 3}, "generator must be a torch.Generator, got 3"),
        ({"attention_mask": torch.ones(2, 4, dtype=torch.bool)}, r"attention_mask must be bool .* shape \(2, 5\)"),
        ({"attention_mask": [1]}, "attention_mask must be a tensor, got list"),
    ],
)
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_bad_settings(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(kind).generate(random_tokens(2, 5), **{"max_new_tokens": 3, **settings})


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_bad_prompts(kind: str) -> None:
    model, prompts = make_model(kind), random_tokens(2, 5)
    for bad, message in (
        (prompts.tolist(), "tokens must be a tensor, got list"),
        (prompts.to("meta"), "tokens must be on cpu, where the weights are, got meta"),
        (prompts[:, :0], r"S at least 1, got torch.int64 of \(2, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(bad, 3)


def test_prompts_padded_on_the_right() -> None:
    with pytest.raises(ValueError, match="padding in its last column: pad prompts on the left"):
        make_model("decoder").generate(random_tokens(2, 5), 3, attention_mask=torch.tensor([[True] * 4 + [False]] * 2))


def test_overflow_of_prompt_and_continuation() -> None:
    with pytest.raises(ValueError, match="a prompt of 5 tokens and 8 new ones overflow the context of 12"):
        make_model("decoder").generate(random_tokens(2, 5), 8)


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 1, 1, 3), (2, 1, 2, 1)])
def test_a_cache_broadcasts_nothing(shape: tuple[int, ...]) -> None:
    cache = KeyValueCache(8)
    fitting = torch.zeros(2, 1, 2, 3)
    cache.append(fitting, fitting)
    for new in ((torch.zeros(shape), fitting), (fitting, torch.zeros(shape))):
        with pytest.raises(
            ValueError, match=r"a cache of \(B, K, D\) = \(2, 2, 3\) cannot hold (keys|values) of shape"
        ):
            cache.append(*new)
    assert cache.length == 1


def test_a_full_cache() -> None:
    with pytest.raises(ValueError, match="a cache of 3 positions cannot hold 4"):
        KeyValueCache(3).append(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2))
