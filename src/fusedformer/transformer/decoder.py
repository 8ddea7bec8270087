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
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config, causal=True)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, S, V): those at position i are for token i + 1, given tokens 0 to i.

        Args:
            tokens: int32 or int64, (B, S), values below vocab_size.

        Raises:
            ValueError: a shape, dtype or token is wrong, or S is greater than max_seq_len.
        """
        return unembed(self.hidden(tokens), self.token_embedding, self.head)

    def hidden(self, tokens: Tensor, caches: Sequence[KeyValueCache] | None = None) -> Tensor:
        """What the head reads, (B, S, E). With `caches`, the tokens continue the sequence that is cached."""
        start = caches[0].length if caches else 0
        x_BSE = self.dropout(self.position_embedding(self.token_embedding(tokens), start))
        return self.stack(x_BSE, caches=caches)

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per token, of tokens 1 to S - 1, each given all tokens before it."""
        check_tokens("tokens", tokens, self.config.vocab_size)
        if tokens.shape[1] < 2:
            raise ValueError(f"a loss needs at least 2 tokens per sequence, got shape {tuple(tokens.shape)}")
        logits_BSV = self(tokens[:, :-1])
        return F.cross_entropy(logits_BSV.flatten(0, 1), tokens[:, 1:].flatten().long())

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each sequence by `max_new_tokens` tokens, one at a time, with dropout off.

        Args:
            tokens: the prompts, int32 or int64, (B, S), S at least 1.
            max_new_tokens: how many tokens to append; S + max_new_tokens is at most max_seq_len.
            temperature: logits are divided by it; 0 takes the most probable token each time (greedy).
            top_k: draw among the k most probable tokens only; None: among all.
            generator: the source of randomness, on the model's device; None: PyTorch's own.

        Returns:
            Tensor (B, S + max_new_tokens) of the prompts' dtype: prompts and continuations.

        Raises:
            ValueError: an argument is out of range or the context overflows.
        """
        check_tokens("tokens", tokens, self.config.vocab_size)
        generation.check_room(tokens.shape[1], max_new_tokens, self.config.max_seq_len)
        sampler = generation.Sampler(temperature, top_k, generator)
        caches = self.stack.new_caches(tokens.shape[1] + max_new_tokens)

        def next_logits(new_BS: Tensor) -> Tensor:
            return unembed(self.hidden(new_BS, caches)[:, -1], self.token_embedding, self.head)

        with generation.evaluating(self):
            return generation.extend(tokens, max_new_tokens, next_logits, sampler)
