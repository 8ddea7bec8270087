"""Decoding token by token: with a cache as without, sampling as configured, seeds, stops and overflow."""

from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Decoder
from fusedformer.transformer.generation import GenerativeModel
from fusedformer.transformer.sampling import Sampler


def generate_without_cache(model: Decoder, tokens: Tensor, max_new_tokens: int, sampler: Sampler) -> Tensor:
    with torch.no_grad():
        for _ in range(max_new_tokens):
            tokens = torch.cat([tokens, sampler(model(tokens)[:, -1]).unsqueeze(1)], dim=1)
    return tokens


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("prompt", [1, 5])
def test_cache_changes_no_token(prompt: int, temperature: float, static_cache: bool) -> None:
    model = make_model("decoder")
    tokens = random_tokens(4, prompt)
    cached = model.generate(tokens, 7, temperature=temperature, top_k=6, generator=seeded(1), static_cache=static_cache)
    uncached = generate_without_cache(model, tokens, 7, Sampler(temperature, 6, generator=seeded(1)))
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :prompt], tokens)


@pytest.mark.parametrize("static_cache", [False, True])
def test_encoder_decoder_cache_changes_no_token(static_cache: bool) -> None:
    model = make_model("encoder_decoder", decoder_start_token_id=2)
    source = random_tokens(4, 10)
    mask = torch.arange(10) < torch.tensor([[10], [3], [7], [1]])
    expected = torch.full((4, 1), 2)
    for _ in range(12):
        logits = model.decode(expected, model.encode(source, mask))
        expected = torch.cat([expected, logits[:, -1:].argmax(dim=-1)], dim=1)
    found = model.generate(source, 12, attention_mask=mask, temperature=0, static_cache=static_cache)
    assert torch.equal(found, expected[:, 1:])


def test_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = make_model("encoder_decoder"), []
    for module in (model.encoder, *(block.cross_attention.key_value for block in model.decoder.blocks)):
        module.register_forward_hook(lambda module, args, out: calls.append(module))
    model.generate(random_tokens(2, 5), 6)
    model.beam_search(random_tokens(2, 5), 6, 3)
    assert len(calls) == len(set(calls)) * 2


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
def test_any_of_several_tokens_ends_a_row(kind: str) -> None:
    model = make_model(kind)
    prompts = random_tokens(16, 2)
    free = model.generate(prompts, 10, temperature=0)[:, -10:]
    ends = [int(free[0, 4]), int(free[1, 2])]
    stopped = model.generate(prompts, 10, temperature=0, eos_token_id=ends)[:, -10:]
    for row, expected in zip(stopped.tolist(), free.tolist(), strict=True):
        end = min((expected.index(token) for token in ends if token in expected), default=9)
        assert row == expected[: end + 1] + [ends[0]] * (9 - end)


def letters(tokens: list[int]) -> str:
    return "".join(chr(ord("a") + token) for token in tokens)


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_stop_strings(kind: str) -> None:
    model = make_model(kind)
    prompts = random_tokens(16, 2)
    free = model.generate(prompts, 10, temperature=3, generator=seeded(5))[:, -10:].tolist()
    strings = [letters(free[0][3:5]), letters(free[1][6:9])]
    settings: dict[str, Any] = {"eos_token_id": 18, "stop_strings": strings, "decode": letters}
    stopped = model.generate(prompts, 10, temperature=3, generator=seeded(5), **settings)[:, -10:].tolist()
    for row, expected in zip(stopped, free, strict=True):
        ends = [letters(expected).find(string) + len(string) for string in strings if string in letters(expected)]
        ends += [expected.index(18) + 1] if 18 in expected else []
        end = min(ends, default=10)
        assert row == expected[:end] + [18] * (10 - end)
    assert [row[:5] for row in stopped[:2]] == [row[:5] for row in free[:2]]
    assert stopped[0][5:] == [18] * 5


def test_tokens_stream_as_they_are_chosen() -> None:
    model, prompts = make_model("decoder"), random_tokens(3, 2)
    steps: list[Tensor] = []
    written = model.generate(prompts, 7, generator=seeded(2), eos_token_id=4, on_tokens=steps.append)
    streamed = torch.stack(steps, dim=1)
    assert torch.equal(written[:, 2 : 2 + len(steps)], streamed)
    assert (written[:, 2 + len(steps) :] == 4).all()


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": 0, "repetition_penalty": 2.0}, {"top_p": 0.9, "static_cache": True}],
)
def test_padded_prompts_equal_single_runs(kind: str, settings: dict[str, Any]) -> None:
    model = make_model(kind)
    prompts = [random_tokens(1, length) for length in (6, 3, 1)]
    padded, mask = random_tokens(3, 6), torch.arange(6) >= torch.tensor([[0], [3], [5]])
    for row, prompt in zip(padded, prompts, strict=True):
        row[6 - prompt.shape[1] :] = prompt[0]
    together = model.generate(padded, 6, attention_mask=mask, generator=[seeded(n) for n in range(3)], **settings)
    alone = [model.generate(prompt, 6, generator=[seeded(n)], **settings)[:, -6:] for n, prompt in enumerate(prompts)]
    assert torch.equal(together[:, -6:], torch.cat(alone))


def test_seeds_reproduce() -> None:
    model, tokens = make_model("decoder"), random_tokens(8, 2)
    first, same, other = (model.generate(tokens, 10, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    from_global = model.generate(tokens, 10)
    torch.manual_seed(3)
    assert torch.equal(model.generate(tokens, 10), from_global)


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
    assert type(model).generate is GenerativeModel.generate
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
        ({"top_p": 0}, "top_p must be a finite number, above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be a finite number, above 0 and at most 1, got 1.1"),
        ({"min_p": -0.1}, "min_p must be a finite number, at least 0 and at most 1, got -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number, above 0, got 0"),
        ({"stop_strings": "x"}, "stop_strings need decode, to find them, and eos_token_id"),
        ({"stop_strings": ["x"], "decode": str}, "stop_strings need decode, to find them, and eos_token_id"),
        ({"stop_strings": ["x", ""]}, "stop_strings must be strings that are not empty"),
        ({"eos_token_id": [3, 19]}, "eos_token_id 19 is outside a vocabulary of 19"),
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
