"""The encoder-decoder of the original transformer: one sequence is read whole, another is written token by token.

Dimensions: B batch, S source, T target, E d_model, V vocabulary.
Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3, with learned positions.
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
    Memory,
    PositionEmbedding,
    Stack,
    TokenEmbedding,
    attention_mask,
    check_mask,
    check_tokens,
    unembed,
)


class EncoderDecoder(Model):
    """A source sequence and the target so far in, the logits of each next target token out.

    Source and target share one token table, and with `tie_embeddings` the output head is that table too.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    needs = ("vocab_size", "max_seq_len")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.source_position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.target_position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Stack(config)
        self.decoder = Stack(config, causal=True, cross=True)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        initialise(self)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) by teacher forcing: those at position i are for target i, given targets 0 to i - 1.

        Args:
            source: int32 or int64, (B, S), values below vocab_size.
            target: likewise, (B, T); it is shifted right behind the start token here.
            source_mask: bool, (B, S), True for a real source token and False for padding; None: no padding.

        Raises:
            ValueError: a shape, dtype or token is wrong, or S or T is greater than max_seq_len.
        """
        return self.decode(self.shift_right(target), self.encode(source, source_mask))

    def loss(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the target, in nats per token; padding, False in a mask, does not count."""
        logits_BTV = self(source, target, source_mask)
        labels_BT = target.long()
        if target_mask is not None:
            check_mask(target_mask, target.shape)
            labels_BT = labels_BT.masked_fill(~target_mask, -100)
        return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=-100)

    def generate(
        self,
        source: Tensor,
        max_new_tokens: int,
        source_mask: Tensor | None = None,
        stop_token: int | None = None,
    ) -> Tensor:
        """Write the most probable target token by token (greedy), with dropout off.

        Args:
            source: int32 or int64, (B, S), values below vocab_size.
            max_new_tokens: the longest target, at most max_seq_len.
            source_mask: bool, (B, S), True for a real source token and False for padding; None: no padding.
            stop_token: ends a target and fills the rest of its row; None: no target ends early.

        Returns:
            Tensor (B, max_new_tokens) of the source's dtype, without the start token.

        Raises:
            ValueError: a shape, dtype or token is wrong, or the context overflows.
        """
        # The start token takes no room of its own: it is fed in place of the last target token, which never is.
        generation.check_room(0, max_new_tokens, self.config.max_seq_len)
        if stop_token is not None and not 0 <= stop_token < self.config.vocab_size:
            raise ValueError(f"stop_token {stop_token} is outside a vocabulary of {self.config.vocab_size}")
        caches = self.decoder.new_caches(max_new_tokens)
        with generation.evaluating(self), torch.no_grad():
            memories = self.encode(source, source_mask)

            def next_logits(new_BT: Tensor) -> Tensor:
                return self.decode(new_BT, memories, caches)[:, -1]

            start_B1 = source.new_full((len(source), 1), self.config.start_token)
            greedy = generation.Sampler(temperature=0)
            return generation.extend(start_B1, max_new_tokens, next_logits, greedy, stop_token)[:, 1:]

    def encode(self, source: Tensor, mask: Tensor | None = None) -> list[Memory]:
        """Read the source: for each decoder block, the keys and values of the final encoder output."""
        mask_B11S = attention_mask(mask, source.shape)
        x_BSE = self.dropout(self.source_position_embedding(self.token_embedding(source)))
        return self.decoder.remember(self.encoder(x_BSE, mask_B11S), mask_B11S)

    def decode(
        self, tokens: Tensor, memories: Sequence[Memory], caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the tokens after these. With `caches`, the tokens continue the cached target."""
        n_sources = len(memories[0].keys)
        if len(tokens) != n_sources:
            raise ValueError(f"the source has {n_sources} sequences, the target {len(tokens)}")
        start = caches[0].length if caches else 0
        x_BTE = self.dropout(self.target_position_embedding(self.token_embedding(tokens), start))
        return unembed(self.decoder(x_BTE, caches=caches, memories=memories), self.token_embedding, self.head)

    def shift_right(self, target: Tensor) -> Tensor:
        """The decoder's input for this target: the start token, then all but the last target."""
        check_tokens("target", target, self.config.vocab_size)
        start_B1 = target.new_full((len(target), 1), self.config.start_token)
        return torch.cat([start_B1, target[:, :-1]], dim=1)
