"""The decoder of GPT: every token attends to those before it, and predicts the next.

Dimensions: B batch, S sequence, E d_model, V vocabulary.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.transformer import generation
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import Model, initialise
from fusedformer.transformer.parts import (
    KeyValueCache,
    PositionEmbedding,
    Stack,
    TokenEmbedding,
    check_tokens,
    unembed,
)


class Decoder(Model):
    """Tokens in, the logits of each next token out.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    needs = ("vocab_size", "max_seq_len")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.tokens = TokenEmbedding(config.vocab_size, config.d_model)
        self.positions = PositionEmbedding(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config, causal=True)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        initialise(self)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits (B, S, V): those at position i are for token i + 1, given tokens 0 to i.

        Args:
            tokens_BS: int32 or int64, (B, S), values below vocab_size.

        Raises:
            ValueError: a shape, dtype or token is wrong, or S is greater than max_seq_len.
        """
        return unembed(self.hidden(tokens_BS), self.tokens, self.head)

    def hidden(self, tokens_BS: Tensor, caches: Sequence[KeyValueCache] | None = None) -> Tensor:
        """What the head reads, (B, S, E). With `caches`, the tokens continue the sequence that is cached."""
        start = caches[0].length if caches else 0
        x_BSE = self.dropout(self.positions(self.tokens(tokens_BS), start))
        return self.stack(x_BSE, caches=caches)

    def loss(self, tokens_BS: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per token, of tokens 1 to S - 1, each given all tokens before it."""
        check_tokens("tokens", tokens_BS, self.config.vocab_size)
        if tokens_BS.shape[1] < 2:
            raise ValueError(f"a loss needs at least 2 tokens per sequence, got shape {tuple(tokens_BS.shape)}")
        logits_BSV = self(tokens_BS[:, :-1])
        return F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten().long())

    def generate(
        self,
        tokens_BS: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each sequence by `max_new_tokens` tokens, one at a time, with dropout off.

        Args:
            tokens_BS: the prompts, int32 or int64, (B, S), S at least 1.
            max_new_tokens: how many tokens to append; S + max_new_tokens is at most max_seq_len.
            temperature: logits are divided by it; 0 takes the most probable token each time (greedy).
            top_k: draw among the k most probable tokens only; None: among all.
            generator: the source of randomness, on the model's device; None: PyTorch's own.

        Returns:
            Tensor (B, S + max_new_tokens) of the prompts' dtype: prompts and continuations.

        Raises:
            ValueError: an argument is out of range or the context overflows.
        """
        check_tokens("tokens", tokens_BS, self.config.vocab_size)
        generation.check_room(tokens_BS.shape[1], max_new_tokens, self.config.max_seq_len)
        sampler = generation.Sampler(temperature, top_k, generator)
        caches = self.stack.new_caches(tokens_BS.shape[1] + max_new_tokens)

        def next_logits(tokens_BS: Tensor) -> Tensor:
            return unembed(self.hidden(tokens_BS, caches)[:, -1], self.tokens, self.head)

        with generation.evaluating(self):
            return generation.extend(tokens_BS, max_new_tokens, next_logits, sampler)
