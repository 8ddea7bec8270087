"""Decoding token by token: the loop, and the choice of the next token from its logits.

Dimensions: B batch, S sequence, V vocabulary.
Source: top-k sampling as in Fan et al. 2018, "Hierarchical Neural Story Generation" (arXiv:1805.04833), section 5.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.kernels.softmax import softmax
from fusedformer.transformer.checks import check_generator, check_integer, check_temperature


@dataclass(frozen=True)
class Sampler:
    """Chooses one token per sequence: greedily at temperature 0, else at random from softmax(logits / temperature).

    Raises:
        ValueError: if the temperature is no finite number from 0 on, or top_k no integer from 1 on.
    """

    temperature: float = 1.0
    top_k: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.top_k is not None:
            check_integer("top_k", self.top_k, least=1)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Chosen tokens, int64, (B,)."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        check_generator(self.generator, logits_BV.device)
        logits_BV = logits_BV.to(accumulate_dtype(logits_BV.dtype))
        # With the largest at 0, dividing by a tiny temperature gives 0 and -inf, never the NaN of inf - inf.
        scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            top = scaled_BV.topk(self.top_k, dim=-1)
            scaled_BV = torch.full_like(scaled_BV, -torch.inf).scatter(-1, top.indices, top.values)
        return torch.multinomial(softmax(scaled_BV), 1, generator=self.generator).squeeze(1)


@torch.no_grad()
def extend(
    tokens_BS: Tensor,
    max_new_tokens: int,
    next_logits: Callable[[Tensor], Tensor],
    sampler: Sampler,
    eos_token_id: int | None = None,
) -> Tensor:
    """Append `max_new_tokens` tokens to each sequence.

    Args:
        tokens_BS: the sequences to continue, (B, S).
        max_new_tokens: how many tokens to append.
        next_logits: maps the tokens it has not been given yet, (B, S) and then (B, 1), to the next logits, (B, V).
        sampler: chooses the next tokens, (B,), from these logits.
        eos_token_id: ends a sequence and fills the rest of its row; None: no sequence ends early.

    Returns:
        Tensor (B, S + max_new_tokens) of tokens_BS's dtype.
    """
    B, S = tokens_BS.shape
    sequence = tokens_BS.new_full((B, S + max_new_tokens), 0 if eos_token_id is None else eos_token_id)
    sequence[:, :S] = new_BS = tokens_BS
    running_B = torch.ones(B, dtype=torch.bool, device=tokens_BS.device)
    for end in range(S, S + max_new_tokens):
        next_B = sampler(next_logits(new_BS)).to(tokens_BS.dtype)
        if eos_token_id is not None:
            next_B = next_B.where(running_B, eos_token_id)
            running_B = next_B != eos_token_id
        sequence[:, end] = next_B
        new_BS = sequence[:, end : end + 1]
        if eos_token_id is not None and not running_B.any():
            break
    return sequence


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module is back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
