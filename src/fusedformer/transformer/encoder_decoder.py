"""The encoder-decoder of the original transformer: one sequence is read whole, another is written token by token.

Also T5, whose positions are biases of attention, and Whisper, whose source is the spectrogram of 30 seconds of sound.
Dimensions: B batch, S source, T target, F frames of a spectrogram, E d_model, V vocabulary.
Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3; Raffel et al. 2020 (T5,
arXiv:1910.10683); Radford et al. 2022 (Whisper, arXiv:2212.04356).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusedformer.transformer import generation
from fusedformer.transformer.blocks import Stack
from fusedformer.transformer.cache import KeyValueCache, Memory
from fusedformer.transformer.checks import check_eos, check_mask, check_room, check_tokens
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.embeddings import AudioEmbedding
from fusedformer.transformer.model import LanguageModel, initialise
from fusedformer.transformer.outputs import mean_cross_entropy
from fusedformer.transformer.positions import Placement, make_position_embedding, place


class EncoderDecoder(LanguageModel):
    """A source sequence and the target so far in, the logits of each next target token out.

    Source and target share one token table, and with `tie_embeddings` the output head is that table too.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.audio_embedding = AudioEmbedding(config) if config.n_mels else None
        self.source_position_embedding = None if config.n_mels else make_position_embedding(config)
        self.target_position_embedding = make_position_embedding(config)
        self.encoder = Stack(config)
        self.decoder = Stack(config, causal=True, cross=True)
        initialise(self)

    def forward(self, source: Tensor, target: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) by teacher forcing: those at position i are for target i, given targets 0 to i - 1.

        Args:
            source: int32 or int64, (B, S), values below vocab_size; with n_mels, floating point, (B, n_mels, F).
            target: int32 or int64, (B, T), values below vocab_size; it is shifted right behind the start token here.
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

    def generate(
        self,
        source: Tensor,
        max_new_tokens: int,
        *,
        attention_mask: Tensor | None = None,
        eos_token_id: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Write the target of each source, token by token, with dropout off.

        Args:
            source: int32 or int64, (B, S), values below vocab_size.
            max_new_tokens: the length of the targets, at most max_seq_len.
            attention_mask: bool, (B, S), True for a real source token and False for padding; None: no padding.
            eos_token_id: ends a target and fills the rest of its row; None: no target ends early.
            temperature: logits are divided by it; 0 takes the most probable token each time (greedy).
            top_k: draw among the k most probable tokens only; None: among all.
            generator: the source of randomness, on the model's device; None: PyTorch's own.

        Returns:
            Tensor (B, max_new_tokens) of the source's dtype, int64 of sound, without the start token.

        Raises:
            ValueError: an argument is out of range, or the context overflows.
        """
        # The start token takes no room of its own: it is fed in place of the last target token, which never is.
        check_room(0, max_new_tokens, self.config.max_seq_len)
        check_eos(eos_token_id, self.config.vocab_size)
        sampler = generation.Sampler(temperature, top_k, generator)
        caches = self.decoder.new_caches(max_new_tokens)
        with generation.evaluating(self), torch.no_grad():
            memories = self.encode(source, attention_mask)

            def next_logits(new_BT: Tensor) -> Tensor:
                return self.decode(new_BT, memories, caches)[:, -1]

            dtype = torch.int64 if source.is_floating_point() else source.dtype
            start_B1 = source.new_full((len(source), 1), self.config.decoder_start_token_id, dtype=dtype)
            return generation.extend(start_B1, max_new_tokens, next_logits, sampler, eos_token_id)[:, 1:]

    def encode(self, source: Tensor, attention_mask: Tensor | None = None) -> list[Memory]:
        """Read the source: for each decoder block, the keys and values of the final encoder output."""
        x_BSE, placement = self.embed_source(source, attention_mask)
        return self.decoder.remember(self.encoder(self.dropout(x_BSE), placement), placement.key_mask)

    def embed_source(self, source: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Placement]:
        """What the encoder reads, (B, S, E), and where it stands."""
        if self.audio_embedding is not None:
            if attention_mask is not None:
                raise ValueError("attention_mask was given, but sound has no padding: silence is heard too")
            x_BSE = self.audio_embedding(source)
            return x_BSE, place(x_BSE, None, self.config.max_source_len)
        x_BSE = self.token_embedding(source)
        placement = place(x_BSE, attention_mask, self.config.max_seq_len)
        if self.source_position_embedding is not None:
            x_BSE = self.source_position_embedding(x_BSE, placement)
        return x_BSE, placement

    def decode(
        self, tokens: Tensor, memories: Sequence[Memory], caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the tokens after these. With `caches`, the tokens continue the cached target."""
        n_sources = len(memories[0].keys)
        x_BTE = self.token_embedding(tokens)
        if len(x_BTE) != n_sources:
            raise ValueError(f"the source has {n_sources} sequences, the target {len(x_BTE)}")
        n_cached = caches[0].length if caches else 0
        placement = place(x_BTE, None, self.config.max_seq_len, n_cached)
        if self.target_position_embedding is not None:
            x_BTE = self.target_position_embedding(x_BTE, placement)
        return self.unembed(self.decoder(self.dropout(x_BTE), placement, caches, memories))

    def shift_right(self, target: Tensor) -> Tensor:
        """The decoder's input for this target: the start token, then all but the last target."""
        check_tokens("target", target, self.config.vocab_size, self.token_embedding.weight.device)
        start_B1 = target.new_full((len(target), 1), self.config.decoder_start_token_id)
        return torch.cat([start_B1, target[:, :-1]], dim=1)
