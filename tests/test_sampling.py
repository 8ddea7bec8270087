"""Samplers: frequencies, what top-k, top-p and min-p keep, the repetition penalty, and randomness of each row's own."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedformer.transformer.sampling import Sampler, penalise, seen_tokens


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_float32(dtype: torch.dtype) -> None:
    # As wide apart as float16 goes: in it, the difference is -inf, and the smaller logit could never be drawn.
    logits = torch.tensor([[60000.0, -60000.0]]).to(dtype).expand(2000, 2)
    frequencies = torch.bincount(Sampler(1e6, generator=seeded(0))(logits), minlength=2) / 2000
    expected = torch.softmax(torch.tensor([0.06, -0.06]), dim=0)
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.04)


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


# In float64, so that the sums that the properties speak of are exact to more digits than they differ in.
logits_of_rows = (
    st.integers(1, 12)
    .flatmap(lambda V: st.lists(st.lists(st.integers(-40, 40), min_size=V, max_size=V), min_size=1, max_size=3))
    .map(lambda rows: torch.tensor(rows, dtype=torch.float64) / 8)
)
properties = settings(max_examples=150, deadline=None, derandomize=True)


def kept(sampler: Sampler, logits: Tensor) -> Tensor:
    """Which tokens can be drawn, bool, (B, V)."""
    scores, tokens = sampler.narrow(logits)
    tokens = torch.arange(logits.shape[1]).expand_as(scores) if tokens is None else tokens
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, tokens, scores > -torch.inf)


@properties
@given(logits_of_rows, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_have_the_mass(logits: Tensor, top_p: float) -> None:
    for p, keep in zip(logits.softmax(dim=1), kept(Sampler(top_p=top_p), logits)):
        n = int(keep.sum())
        sums = p.sort(descending=True).values.cumsum(dim=0)
        assert sums[n - 1] >= top_p - 1e-12
        assert n == 1 or sums[n - 2] < top_p + 1e-12
        assert p[keep].min() >= p[~keep].max() if n < len(p) else True


@properties
@given(logits_of_rows, st.integers(1, 14))
def test_top_k_keeps_the_k_best(logits: Tensor, top_k: int) -> None:
    for row, keep in zip(logits, kept(Sampler(top_k=top_k), logits)):
        assert keep.sum() == min(top_k, len(row))
        assert row[keep].min() >= row[~keep].max() if top_k < len(row) else True


@properties
@given(logits_of_rows, st.floats(0.0, 1.0), st.floats(0.1, 3.0))
def test_min_p_is_relative_to_the_best(logits: Tensor, min_p: float, temperature: float) -> None:
    p = (logits / temperature).softmax(dim=1)
    least = min_p * p.amax(dim=1, keepdim=True)
    keep = kept(Sampler(temperature, min_p=min_p), logits)
    assert keep[p > least * (1 + 1e-9)].all()
    assert not keep[p < least * (1 - 1e-9)].any()


@properties
@given(logits_of_rows, st.floats(0.1, 3.0), st.integers(1, 14), st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_only_what_is_kept_is_drawn(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    sampler = Sampler(temperature, top_k, top_p, min_p, generator=seeded(1))
    keep = kept(sampler, logits)
    assert keep.gather(1, logits.argmax(dim=1, keepdim=True)).any() or (logits == logits.amax()).sum() > 1
    for _ in range(3):
        assert keep.gather(1, sampler(logits).unsqueeze(1)).all()


@properties
@given(logits_of_rows, st.floats(0.1, 10.0))
def test_repetition_penalty(logits: Tensor, penalty: float) -> None:
    seen = logits > logits.mean()
    scores = penalise(logits, seen, penalty)
    assert torch.equal(scores[~seen], logits[~seen])
    assert (scores[seen] <= logits[seen]).all() if penalty >= 1 else (scores[seen] >= logits[seen]).all()
    torch.testing.assert_close(penalise(scores, seen, 1 / penalty), logits)


def test_seen_tokens_are_not_those_of_padding() -> None:
    tokens = torch.tensor([[4, 1, 1], [0, 2, 3]], dtype=torch.int32)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert seen_tokens(tokens, 5, mask).nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [1, 3]]
    assert seen_tokens(tokens, 5, None)[0].tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.8, "min_p": 0.05}])
def test_a_row_with_a_generator_of_its_own_draws_by_itself(settings: dict[str, Any]) -> None:
    logits = torch.randn(6, 40, generator=seeded(0))

    def draw(rows: list[int]) -> list[int]:
        generators = [seeded(row) for row in rows]
        sampler = Sampler(**settings, generator=generators)
        return torch.stack([sampler(logits[rows]) for _ in range(5)], dim=1).tolist()

    together = draw([0, 1, 2, 3, 4, 5])
    assert draw([4, 1]) == [together[4], together[1]]
    assert len({str(row) for row in together}) > 1


def test_generators_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="there are 2 generators for 3 sequences"):
        Sampler(generator=[seeded(0), seeded(1)])(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"generator must be a torch.Generator, got 7"):
        Sampler(generator=[seeded(0), 7])(torch.zeros(2, 4))  # type: ignore[list-item]
