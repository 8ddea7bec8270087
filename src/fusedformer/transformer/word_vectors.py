"""The words of an embedding table: a vector for each, the nearest ones to a vector, and arithmetic of meanings.

Dimensions: V vocabulary, E width of a vector, B queries, n neighbours.
Nearness is the cosine. Words that a question was asked with are not among its answers, as is usual.
Source: Mikolov, Yih and Zweig 2013, "Linguistic Regularities in Continuous Space Word Representations", section 4
(king - man + woman), by vectors of unit length as in Levy and Goldberg 2014 (3CosAdd).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer.checks import FLOATS, check_integer


class WordVectors:
    """An embedding table with its vocabulary, such as a model's `token_embedding.weight` with its tokenizer's.

    Args:
        table: floating point, (V, E).
        words: the word of each row, V different ones; or each word's row, as tokenizers give it.

    Raises:
        ValueError: if the table is none, or the words are not one for each row.
    """

    def __init__(self, table: Tensor, words: Sequence[str] | Mapping[str, int]) -> None:
        if not isinstance(table, Tensor) or table.dtype not in FLOATS or table.dim() != 2:
            found = f"{table.dtype} of {tuple(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
            raise ValueError(f"table must be floating point of shape (V, E), got {found}")
        if not isinstance(words, Mapping):
            words = {word: row for row, word in enumerate(words)}
        if sorted(words.values()) != list(range(len(table))):
            raise ValueError(f"a table of {len(table)} rows needs a different word for each, got {len(words)}")
        self.rows = dict(words)
        self.words = sorted(words, key=self.rows.__getitem__)
        table = table.detach()
        # In float16 the square of a vector overflows, and its unit vector is 0.
        self.unit_VE = F.normalize(table.to(accumulate_dtype(table.dtype)), dim=1)

    def vectors(self, words: Sequence[str]) -> Tensor:
        """The unit vectors of these words, (B, E).

        Raises:
            ValueError: if one is not in the vocabulary; all that are not are named.
        """
        if unknown := [word for word in words if word not in self.rows]:
            raise ValueError(f"not in the vocabulary of {len(self.rows)} words: {', '.join(map(repr, unknown))}")
        return self.unit_VE[[self.rows[word] for word in words]]

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """The n words nearest to this one, with their cosines, the nearest first.

        Raises:
            ValueError: if the word is not in the vocabulary, or n no integer from 1 on.
        """
        return self.combine([word], n=n)

    def combine(self, plus: Sequence[str], minus: Sequence[str] = (), n: int = 10) -> list[tuple[str, float]]:
        """The n words nearest to the sum of some words' unit vectors, less those of others; none of these themselves.

        `combine(["king", "woman"], ["man"])` asks for what is to a king as a woman is to a man.

        Raises:
            ValueError: if a word is not in the vocabulary, there is none, or n is no integer from 1 on.
        """
        check_integer("n", n, least=1)
        if isinstance(plus, str) or isinstance(minus, str) or not [*plus, *minus]:
            raise ValueError(f"plus and minus must be lists of words, at least one, got {plus!r} and {minus!r}")
        asked, vectors_BE = [*plus, *minus], self.vectors([*plus, *minus])
        total_E = vectors_BE[: len(plus)].sum(dim=0) - vectors_BE[len(plus) :].sum(dim=0)
        cosines_V = self.unit_VE @ F.normalize(total_E, dim=0)
        cosines_V[[self.rows[word] for word in asked]] = -torch.inf
        best = cosines_V.topk(min(n, len(self.words) - len(set(asked))))
        return [(self.words[row], cosine) for row, cosine in zip(best.indices.tolist(), best.values.tolist())]
