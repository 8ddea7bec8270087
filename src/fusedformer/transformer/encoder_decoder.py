"""The encoder-decoder of the original transformer: one sequence is read whole, another is written token by token.

Dimensions: B batch, S source, T target, E d_model, V vocabulary.
Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3, with learned positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusedformer.transformer.cache import Cache, DecodingState, Memory
from fusedformer.transformer.checks import check_mask, check_room, check_tokens
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.generation import GenerativeModel
from fusedformer.transformer.model import initialise
from fusedformer.transformer.parts import (
    PositionEmbedding,
    Stack,
    key_mask,
    mean_cross_entropy,
)


class EncoderDecoder(GenerativeModel):
    """A source sequence and the target so far in, the logits of each next target token out.

    Source and target share one token table, and with `tie_embeddings` the output head is that table too.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    returns_prompt = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.source_position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.target_position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.encoder = Stack(config)
        self.decoder = Stack(config, causal=True, cross=True)
        initialise(self)

    def forward(self, source: Tensor, target: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) by teacher forcing: those at position i are for target i, given targets 0 to i - 1.

        Args:
            source: int32 or int64, (B, S), values below vocab_size.
            target: likewise, (B, T); it is shifted right behind the start token here.
            attention_mask: bool, (B, S), True for a real source token and False for padding; None: no padding.
                Padding may stand anywhere: the logits are as they would be without it.

        Raises:
            ValueError: a shape, dtype, device or token is wrong, or S or T is greater than max_seq_len.
        """
        return self.decode(self.shift_right(target), self.encode(source, attention_mask))

    def loss(
        self,
        source: Tensor,
        target: Tensor,
        attention_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the target, in nats per token.

        Args:
            source: see `forward`.
            target: see `forward`.
            attention_mask: see `forward`.
            target_mask: bool, (B, T), True for a target token that counts; None: all do. Targets are padded on the
                right: what comes before a token is what it is predicted from.

        Returns:
            Tensor (), float32 whatever the weights are; 0 where no token counts, as in an empty batch.

        Raises:
            ValueError: as `forward`.
        """
        if target_mask is not None:
            check_tokens("target", target, self.config.vocab_size, self.token_embedding.weight.device)
            check_mask("target_mask", target_mask, target.shape, target.device)
        return mean_cross_entropy(self(source, target, attention_mask), target, target_mask)

    def begin(
        self, tokens: Tensor, max_new_tokens: int, attention_mask: Tensor | None, *, static_cache: bool
    ) -> tuple[Tensor, DecodingState]:
        """See `GenerativeModel`: the source is read here, and its keys and values computed, once."""
        # The start token takes no room of its own: it is fed in place of the last target token, which never is.
        check_room(0, max_new_tokens, self.config.max_seq_len)
        memories = self.encode(tokens, attention_mask)
        start_B1 = tokens.new_full((len(tokens), 1), self.config.decoder_start_token_id)
        return start_B1, DecodingState(self.decoder.new_caches(max_new_tokens, static=static_cache), None, memories)

    def advance(self, tokens_BS: Tensor, state: DecodingState) -> Tensor:
        """See `GenerativeModel`."""
        assert state.memories is not None
        return self.decode(tokens_BS, state.memories, state.caches)[:, -1]

    def encode(self, source: Tensor, attention_mask: Tensor | None = None) -> list[Memory]:
        """Read the source: for each decoder block, the keys and values of the final encoder output."""
        x_BSE = self.token_embedding(source)
        mask_B11S = key_mask(attention_mask, x_BSE)
        x_BSE = self.dropout(self.source_position_embedding(x_BSE, attention_mask))
        return self.decoder.remember(self.encoder(x_BSE, mask_B11S), mask_B11S)

    def decode(self, tokens: Tensor, memories: Sequence[Memory], caches: Sequence[Cache] | None = None) -> Tensor:
        """Logits (B, T, V) of the tokens after these. With `caches`, the tokens continue the cached target."""
        n_sources = len(memories[0].keys)
        x_BTE = self.token_embedding(tokens)
        if len(x_BTE) != n_sources:
            raise ValueError(f"the source has {n_sources} sequences, the target {len(x_BTE)}")
        n_cached = caches[0].length if caches else 0
        mask_B1TT = key_mask(None, x_BTE, caches)
        x_BTE = self.dropout(self.target_position_embedding(x_BTE, n_cached=n_cached))
        return self.unembed(self.decoder(x_BTE, mask_B1TT, caches, memories))

    def shift_right(self, target: Tensor) -> Tensor:
        """The decoder's input for this target: the start token, then all but the last target."""
        check_tokens("target", target, self.config.vocab_size, self.token_embedding.weight.device)
        start_B1 = target.new_full((len(target), 1), self.config.decoder_start_token_id)
        return torch.cat([start_B1, target[:, :-1]], dim=1)
