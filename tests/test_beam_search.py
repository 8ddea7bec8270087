"""Beam search: the best of all sequences where it can see them all, each row by itself, with a cache as without."""

import itertools
from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Decoder

V, EOS = 4, 2


def score(model: Decoder, prompt: Tensor, written: list[int]) -> float:
    """The log-probability of this continuation."""
    tokens = torch.cat([prompt, torch.tensor([written])], dim=1)
    log_p = model(tokens)[0].log_softmax(dim=-1)
    first = prompt.shape[1]
    return sum(log_p[first + i - 1, token].item() for i, token in enumerate(written))


@torch.no_grad()
def best_of_all(model: Decoder, prompt: Tensor, length: int, length_penalty: float) -> list[int]:
    """The best continuation: of all that end with EOS, or are as long as they may be."""
    every = set()
    for written in itertools.product(range(V), repeat=length):
        end = written.index(EOS) + 1 if EOS in written else length
        every.add(written[:end])
    best = max(every, key=lambda written: score(model, prompt, list(written)) / len(written) ** length_penalty)
    return [*best, *[EOS] * (length - len(best))]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_many_beams_find_the_best_of_all(length_penalty: float) -> None:
    model = make_model("decoder", vocab_size=V)
    for prompt in random_tokens(4, 3, vocab_size=V).split(1):
        expected = best_of_all(model, prompt, 4, length_penalty)
        found = model.beam_search(prompt, 4, 300, length_penalty=length_penalty, eos_token_id=EOS)
        assert found[0, 3:].tolist() == expected


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_one_beam_is_greedy(kind: str) -> None:
    model, prompts = make_model(kind), random_tokens(5, 3)
    assert torch.equal(model.beam_search(prompts, 8, 1), model.generate(prompts, 8, temperature=0))


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_padded_prompts_equal_single_runs(kind: str, static_cache: bool) -> None:
    model = make_model(kind)
    prompts = [random_tokens(1, length) for length in (6, 3, 1)]
    padded, mask = random_tokens(3, 6), torch.arange(6) >= torch.tensor([[0], [3], [5]])
    for row, prompt in zip(padded, prompts, strict=True):
        row[6 - prompt.shape[1] :] = prompt[0]
    settings: dict[str, Any] = {"eos_token_id": 3, "repetition_penalty": 1.2, "static_cache": static_cache}
    together = model.beam_search(padded, 6, 4, attention_mask=mask, **settings)[:, -6:]
    alone = torch.cat([model.beam_search(prompt, 6, 4, **settings)[:, -6:] for prompt in prompts])
    assert torch.equal(together, alone)


def test_beams_beat_greedy() -> None:
    model, prompts = make_model("decoder"), random_tokens(12, 3)
    greedy, beams = model.generate(prompts, 8, temperature=0), model.beam_search(prompts, 8, 8)
    scores = [[score(model, row[None, :3], row[3:].tolist()) for row in rows] for rows in (greedy, beams)]
    assert all(found >= plain - 1e-5 for plain, found in zip(*scores))
    assert sum(scores[1]) > sum(scores[0])


def test_nothing_to_write_and_nobody_to_write_for() -> None:
    model, prompts = make_model("decoder"), random_tokens(2, 3)
    assert torch.equal(model.beam_search(prompts, 0, 3), prompts)
    assert model.beam_search(prompts[:0], 4, 3).shape == (0, 7)
    assert model.beam_search(prompts.int(), 4, 3).dtype == torch.int32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_beams": 0}, "n_beams must be an integer, at least 1, got 0"),
        ({"length_penalty": float("nan")}, "length_penalty must be a finite number, got nan"),
        ({"repetition_penalty": -1}, "repetition_penalty must be a finite number, above 0, got -1"),
        ({"eos_token_id": 19}, "eos_token_id 19 is outside a vocabulary of 19"),
        ({"max_new_tokens": 13}, "13 new ones overflow the context of 12"),
    ],
)
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_bad_settings(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(kind).beam_search(random_tokens(2, 5), **{"max_new_tokens": 3, "n_beams": 2, **settings})
