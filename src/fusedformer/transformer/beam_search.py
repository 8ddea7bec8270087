"""Beam search: of each sequence, the continuation whose tokens have the highest mean log-probability, among few.

Dimensions: B batch, N beams of each sequence, C candidates for a step, W tokens written, V vocabulary.
Each step extends every beam by every token and keeps the best C of these N V. Of the best N, those that end go to a
pool of N finished ones, ordered by score / length**length_penalty; the best N that do not end run on. A sequence is
closed when the best beam, at its present length, is no better than the worst of a full pool: nothing is added any more.
Source: Graves 2012 (arXiv:1211.3711), section 2.5, and Wu et al. 2016 (arXiv:1609.08144), section 7, for the length;
the candidates, the pool and when it closes are those of Hugging Face transformers (`early_stopping=False`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedformer.kernels.log_softmax import log_softmax
from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer.cache import DecodingState
from fusedformer.transformer.sampling import penalise


@dataclass
class Beams:
    """N continuations of each of B sequences, the best first."""

    tokens: Tensor  # (B, N, W)
    scores: Tensor  # (B, N), the sums of their log-probabilities, or these by length; -inf where there is none

    def best(self, n: int) -> "Beams":
        """The n best of these."""
        scores_BN, chosen_BN = self.scores.topk(n, dim=1)
        return Beams(take(self.tokens, chosen_BN), scores_BN)


def beam_search(
    advance: Callable[[Tensor, DecodingState], Tensor],
    tokens_BS: Tensor,
    state: DecodingState,
    max_new_tokens: int,
    *,
    n_beams: int,
    length_penalty: float,
    repetition_penalty: float,
    seen_BV: Tensor | None,
    eos_token_ids: Sequence[int],
) -> Tensor:
    """The best continuation of each sequence, (B, max_new_tokens), filled with the end token behind its own.

    Args:
        advance: maps tokens that continue the sequences of a state to the logits of the next ones, (B, V).
        tokens_BS: the sequences to continue, (B, S).
        state: what is known of them; it is used up.
        max_new_tokens: the longest continuation.
        n_beams: N.
        length_penalty: the exponent of the length; 0 prefers short continuations, more than 1 long ones.
        repetition_penalty: see `Sampler`; it acts on log-probabilities here.
        seen_BV: the tokens that it is for; None: none.
        eos_token_ids: the tokens that end a continuation.
    """
    B, fill = len(tokens_BS), eos_token_ids[0] if eos_token_ids else 0
    logits = advance(tokens_BS, state).repeat_interleave(n_beams, dim=0)
    state.repeat(n_beams)
    seen = None if seen_BV is None else seen_BV.repeat_interleave(n_beams, dim=0)
    # All beams of a sequence are the same still: the first alone has continuations.
    scores_BN = torch.full((B, n_beams), -torch.inf, device=logits.device, dtype=accumulate_dtype(logits.dtype))
    finished = Beams(tokens_BS.new_full((B, n_beams, max_new_tokens), fill), scores_BN)
    running = Beams(finished.tokens, scores_BN.index_fill(1, scores_BN.new_zeros(1, dtype=torch.int64), 0))
    open_B1 = torch.ones(B, 1, dtype=torch.bool, device=logits.device)
    ends_V = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    ends_V[list(eos_token_ids)] = True
    n_candidates = min(max(2, 1 + len(eos_token_ids)) * n_beams, n_beams * logits.shape[-1])

    for step in range(max_new_tokens):
        candidates, beam_BC = extend(running, next_scores(logits, seen, repetition_penalty), step, n_candidates)
        ends_BC = ends_V[candidates.tokens[..., step].long()]
        if step == max_new_tokens - 1:
            ends_BC = torch.ones_like(ends_BC)
        length = (step + 1) ** length_penalty
        finished = pool(finished, candidates, ends_BC[:, :n_beams] & open_B1, length)
        running_scores, chosen_BN = candidates.scores.masked_fill(ends_BC, -torch.inf).topk(n_beams, dim=1)
        running = Beams(take(candidates.tokens, chosen_BN), running_scores)
        open_B1 &= running_scores[:, :1] / length > finished.scores[:, -1:]
        if not open_B1.any():
            break
        first_B1 = n_beams * torch.arange(B, device=logits.device).unsqueeze(1)
        rows = (first_B1 + beam_BC.gather(1, chosen_BN)).flatten()
        state.reorder(rows)
        new_tokens = running.tokens[..., step].reshape(-1, 1)
        seen = None if seen is None else seen[rows].scatter_(1, new_tokens.long(), True)
        logits = advance(new_tokens, state)
    return finished.tokens[:, 0]


def next_scores(logits: Tensor, seen: Tensor | None, repetition_penalty: float) -> Tensor:
    """Logarithms of the next tokens' probabilities, (B N, V)."""
    scores = log_softmax(logits.to(accumulate_dtype(logits.dtype)))
    return scores if seen is None else penalise(scores, seen, repetition_penalty)


def extend(running: Beams, next_scores: Tensor, step: int, n_candidates: int) -> tuple[Beams, Tensor]:
    """The best continuations of these by one token, and the beam (B, C) that each continues."""
    scores_BNV = running.scores.unsqueeze(2) + next_scores.unflatten(0, running.scores.shape)
    scores_BC, index_BC = scores_BNV.flatten(1).topk(n_candidates, dim=1)
    beam_BC = index_BC // scores_BNV.shape[2]
    tokens_BCW = take(running.tokens, beam_BC)
    tokens_BCW[..., step] = index_BC % scores_BNV.shape[2]
    return Beams(tokens_BCW, scores_BC), beam_BC


def pool(finished: Beams, candidates: Beams, ending_BN: Tensor, length: float) -> Beams:
    """The best N of the finished continuations and of the first N candidates, where these end."""
    N = ending_BN.shape[1]
    scores_BN = (candidates.scores[:, :N] / length).masked_fill(~ending_BN, -torch.inf)
    tokens_BCW = torch.cat([finished.tokens, candidates.tokens[:, :N]], dim=1)
    return Beams(tokens_BCW, torch.cat([finished.scores, scores_BN], dim=1)).best(N)


def take(tokens_BNW: Tensor, chosen_BC: Tensor) -> Tensor:
    """Of each sequence, the continuations chosen: (B, C, W)."""
    return tokens_BNW.take_along_dim(chosen_BC.unsqueeze(2), dim=1)
