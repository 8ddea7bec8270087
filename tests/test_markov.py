"""Markov models: against counting by hand, the matrix view, masks, sampling, and the published floor on real text."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusedformer import MarkovModel

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
V = 5


def text(length: int = 60, seed: int = 0) -> Tensor:
    """Tokens that are not equally probable."""
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(seed)).amin(dim=0)


def by_hand(tokens: list[int], order: int, context: list[int], token: int, alpha: float | None) -> float:
    """The definition at the head of markov.py, for one token behind one context."""
    if order < 0:
        return 1 / V
    shorter = by_hand(tokens, order - 1, context[1:] if len(context) == order else context, token, alpha)
    if len(context) < order:
        return shorter
    followers = Counter(
        tokens[i + order]
        for i in range(len(tokens) - order)
        if tokens[i : i + order] == context[len(context) - order :]
    )
    total, distinct = sum(followers.values()), len(followers)
    if not total:
        return shorter
    if alpha is not None:
        return (followers[token] + alpha) / (total + alpha * V)
    return (followers[token] + distinct * shorter) / (total + distinct)


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_equals_counting_by_hand(order: int, alpha: float | None) -> None:
    model = MarkovModel(text(), V, order, alpha=alpha)
    contexts = text(80, seed=1).view(16, 5)
    found = model.probabilities(contexts)
    expected = [
        [by_hand(text().tolist(), order, row[len(row) - order :], token, alpha) for token in range(V)]
        for row in contexts.tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(16, dtype=torch.float64))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_loss_is_that_of_the_probabilities(order: int) -> None:
    model, held_out = MarkovModel(text(), V, order), text(30, seed=2)
    expected = [-model.probabilities(held_out[None, :end])[0, held_out[end]].log() for end in range(1, 30)]
    assert model.loss(held_out) == pytest.approx(torch.stack(expected).mean().item())
    assert model.loss(held_out[:2]) == pytest.approx(expected[0].item())


@pytest.mark.parametrize("order", [0, 1, 2])
def test_transition_matrix(order: int) -> None:
    model = MarkovModel(text(), V, order)
    matrix = model.transition_matrix()
    assert matrix.shape == (V**order, V)
    contexts = text(40, seed=3).view(-1, 2)[:, 2 - order :]
    rows = (contexts * torch.tensor([V, 1])[2 - order :]).sum(dim=1)
    one_hot = torch.nn.functional.one_hot(rows, V**order).double()
    torch.testing.assert_close(one_hot @ matrix, model.probabilities(contexts))


def test_two_steps_are_the_matrix_squared() -> None:
    matrix = MarkovModel(text(), V, 1).transition_matrix()
    model = MarkovModel(text(), V, 1)
    start = torch.full((20_000, 1), 3)
    ends = model.generate(start, 2, generator=torch.Generator().manual_seed(0))[:, -1]
    frequencies = ends.bincount(minlength=V) / len(ends)
    torch.testing.assert_close(frequencies.double(), (matrix @ matrix)[3], rtol=0, atol=0.015)


def test_masked_tokens_do_not_follow() -> None:
    model, contexts = MarkovModel(text(), V, 2), text(20, seed=1).view(10, 2)
    mask = torch.tensor([True, False, True, True, False])
    free, masked = model.probabilities(contexts), model.probabilities(contexts, mask)
    torch.testing.assert_close(masked, free * mask / (free * mask).sum(dim=1, keepdim=True))
    written = model.generate(contexts, 30, generator=torch.Generator().manual_seed(1), mask=mask)[:, 2:]
    assert written.unique().tolist() == [0, 2, 3]
    rows = torch.arange(V) == torch.arange(10)[:, None] % V
    assert torch.equal(model.probabilities(contexts, rows), rows.double())
    torch.testing.assert_close(model.transition_matrix(mask)[:, 1], torch.zeros(25, dtype=torch.float64))


def test_generates_as_seeded_and_from_nothing() -> None:
    model, empty = MarkovModel(text(), V, 3), torch.empty(4, 0, dtype=torch.int32)
    first, same, other = (
        model.generate(empty, 12, temperature=0.8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (4, 12)
    assert first.dtype == torch.int32
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    greedy = model.generate(empty, 12, temperature=0)
    assert (greedy == greedy[0]).all()
    assert torch.equal(greedy, model.generate(empty, 12, top_k=1))


def test_a_context_that_was_never_seen_backs_off() -> None:
    tokens = torch.tensor([0, 1, 2] * 5)
    for alpha in (None, 0.1):
        model = MarkovModel(tokens, 4, 2, alpha=alpha)
        shorter = MarkovModel(tokens, 4, 1, alpha=alpha)
        unseen = torch.tensor([[2, 1], [3, 0]])
        torch.testing.assert_close(model.probabilities(unseen), shorter.probabilities(unseen))


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="../shared/data/tinyshakespeare.txt is not beside this checkout")
def test_floors_on_tiny_shakespeare() -> None:
    """A bigram matrix of counts plus 0.01, and the best back-off model: the one of order 4."""
    with SHAKESPEARE.open(encoding="utf-8", newline="") as file:
        characters = file.read()
    code = {character: index for index, character in enumerate(sorted(set(characters)))}
    tokens = torch.tensor([code[character] for character in characters])
    train, held_out = tokens.tensor_split([len(tokens) * 9 // 10])
    bigram = MarkovModel(train, len(code), 1, alpha=0.01)
    assert bigram.loss(held_out) == pytest.approx(2.4875, abs=5e-5)
    losses = {order: MarkovModel(train, len(code), order).loss(held_out) for order in (3, 4, 5)}
    assert losses[4] == pytest.approx(1.6688, abs=5e-5)
    assert min(losses, key=losses.__getitem__) == 4


def test_bad_input() -> None:
    model = MarkovModel(text(), V, 1)
    contexts = torch.tensor([[1], [2]])
    for attempt, message in (
        (lambda: MarkovModel(text().float(), V, 1), r"tokens must be an int32 or int64 tensor .* got torch.float32"),
        (lambda: MarkovModel([1, 2], V, 1), "got list"),  # type: ignore[arg-type]
        (lambda: MarkovModel(text(), 3, 1), "tokens hold values from 0 to 4, outside a vocabulary of 3"),
        (lambda: MarkovModel(text(), V, -1), "order must be an integer, at least 0, got -1"),
        (lambda: MarkovModel(text(), V, 1, alpha=0), "alpha must be a finite number, above 0, got 0"),
        (lambda: MarkovModel(text(3), V, 3), "a text of 3 tokens has no token behind 3 others"),
        (lambda: MarkovModel(text(), V, 12).transition_matrix(), r"a matrix of 5\*\*12 rows and 5 columns has more"),
        (lambda: model.loss(text(1)), "a loss needs at least 2 tokens, got 1"),
        (lambda: model.loss(contexts), r"tensor with 1 dimension\(s\), got torch.int64 of \(2, 1\)"),
        (lambda: model.probabilities(contexts.to("meta")), "contexts must be on cpu, where the text was, got meta"),
        (lambda: model.probabilities(contexts, torch.zeros(V, dtype=torch.bool)), "mask has a row in which no token"),
        (lambda: model.probabilities(contexts, torch.ones(V)), r"mask must be bool and broadcast to \(2, 5\)"),
        (lambda: model.generate(contexts, -1), "max_new_tokens must be an integer, at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
