"""The choice of the next token from its logits: greedy, or at random from a distribution that is narrowed first.

Dimensions: B batch, V vocabulary, K candidates, the most probable first.
Order: repetition penalty, temperature, top-k, top-p, min-p, each on what the one before has left, as in Hugging Face
transformers.
Source: repetition penalty: Keskar et al. 2019, "CTRL" (arXiv:1909.05858), section 4.1; top-k: Fan et al. 2018
(arXiv:1805.04833), section 5; top-p: Holtzman et al. 2020 (arXiv:1904.09751), section 3.1; min-p: Nguyen et al. 2024
(arXiv:2407.01082).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.kernels.softmax import softmax
from fusedformer.transformer.checks import check_generator, check_integer, check_number

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Sampler:
    """Chooses one token per sequence: greedily at temperature 0, else at random from softmax(logits / temperature).

    Args:
        temperature: logits are divided by it; a finite number from 0 on.
        top_k: draw among the k most probable tokens, an integer from 1 on; None: among all.
        top_p: draw among the fewest most probable tokens that together have at least this probability, above 0 and at
            most 1; None: among all.
        min_p: draw among the tokens at least this many times as probable as the most probable one, 0 to 1; None: all.
        repetition_penalty: the logits of tokens seen before are divided by it where positive, multiplied where
            negative; a finite number above 0, 1 for none.
        generator: the source of randomness, on the logits' device, or one for each row: then what a row draws does not
            depend on the rows beside it. None: PyTorch's own.

    Raises:
        ValueError: if a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    generator: Generators = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, math.inf)
        if self.top_k is not None:
            check_integer("top_k", self.top_k, least=1)
        if self.top_p is not None:
            check_number("top_p", self.top_p, 0, 1, above=True)
        if self.min_p is not None:
            check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0, math.inf, above=True)

    def __call__(self, logits_BV: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """Chosen tokens, int64, (B,); `seen_BV`, bool, marks the tokens that the repetition penalty is for."""
        if seen_BV is not None:
            logits_BV = penalise(logits_BV, seen_BV, self.repetition_penalty)
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        scores_BK, tokens_BK = self.narrow(logits_BV)
        # The most probable of all after a race of exponential variables: one draw from the softmax of the scores.
        winner_B1 = (scores_BK - self.exponential(scores_BK).log()).argmax(dim=-1, keepdim=True)
        return (winner_B1 if tokens_BK is None else tokens_BK.gather(1, winner_B1)).squeeze(1)

    def narrow(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (B, K), -inf for what must not be drawn, and the tokens they are of; None: all tokens in order."""
        logits_BV = logits_BV.to(accumulate_dtype(logits_BV.dtype))
        # With the largest at 0, dividing by a tiny temperature gives 0 and -inf, never the NaN of inf - inf.
        scores = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / self.temperature
        tokens_BK, V = None, scores.shape[-1]
        if self.top_p is not None or (self.top_k is not None and self.top_k < V):
            scores, tokens_BK = scores.topk(min(self.top_k or V, V), dim=-1)
        if self.top_p is not None:
            p_BK = softmax(scores)
            before_BK = p_BK.cumsum(dim=-1) - p_BK
            before_BK[:, 0] = 0  # not a rounding error of it: the first is always kept
            scores = scores.masked_fill(before_BK >= self.top_p, -torch.inf)
        if self.min_p:
            scores = scores.masked_fill(scores < math.log(self.min_p), -torch.inf)
        return scores, tokens_BK

    def exponential(self, like: Tensor) -> Tensor:
        """Independent draws from the exponential distribution, of `like`'s shape and dtype."""
        noise = torch.empty_like(like)
        if not isinstance(self.generator, Sequence):
            check_generator(self.generator, like.device)
            return noise.exponential_(generator=self.generator)
        if len(self.generator) != len(like):
            raise ValueError(f"there are {len(self.generator)} generators for {len(like)} sequences")
        for row, generator in zip(noise, self.generator):
            check_generator(generator, like.device)
            row.exponential_(generator=generator)
        return noise


def penalise(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less probable, if the penalty is above 1; scores are logits or logarithms of probabilities."""
    return torch.where(seen_BV, torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty), scores_BV)


def seen_tokens(tokens_BS: Tensor, vocab_size: int, mask_BS: Tensor | None) -> Tensor:
    """Which tokens of the vocabulary each row holds, bool, (B, V); padding is none of them."""
    seen = torch.zeros(len(tokens_BS), vocab_size + 1, dtype=torch.bool, device=tokens_BS.device)
    tokens_BS = tokens_BS.long()
    if mask_BS is not None:
        tokens_BS = tokens_BS.where(mask_BS, vocab_size)
    return seen.scatter_(1, tokens_BS, True)[:, :vocab_size]
