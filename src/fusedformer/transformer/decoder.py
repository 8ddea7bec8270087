"""The decoder of GPT and Llama: every token attends to those before it, and predicts the next.

Dimensions: B batch, S sequence, T positions with those in a cache, E d_model, V vocabulary.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2); Touvron et al. 2023, "LLaMA"
(arXiv:2302.13971).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.transformer import generation
from fusedformer.transformer.blocks import Stack
from fusedformer.transformer.cache import KeyValueCache
from fusedformer.transformer.checks import check_eos, check_mask, check_room, check_tokens
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import LanguageModel, initialise
from fusedformer.transformer.outputs import mean_cross_entropy
from fusedformer.transformer.positions import make_position_embedding, place


class Decoder(LanguageModel):
    """Tokens in, the logits of each next token out.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.position_embedding = make_position_embedding(config)
        self.stack = Stack(config, causal=True)
        initialise(self)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, S, V): those at position i are for token i + 1, given tokens 0 to i.

        Args:
            tokens: int32 or int64, (B, S), values below vocab_size.
            attention_mask: bool, (B, S), True for a real token and False for padding; None: no padding. Padding may
                stand anywhere: the logits at real tokens are as they would be without it. Or (B, S, S), True where a
                position (row) may attend to another (column); never to later ones.

        Raises:
            ValueError: a shape, dtype, device or token is wrong, or S is greater than max_seq_len.
        """
        return self.unembed(self.hidden(tokens, attention_mask))

    def hidden(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """What the head reads, (B, S, E).

        With `caches`, the tokens continue the sequence that is cached, and a mask is of both: (B, T).
        """
        n_cached = caches[0].length if caches else 0
        x_BSE = self.token_embedding(tokens)
        placement = place(x_BSE, attention_mask, self.config.max_seq_len, n_cached)
        if self.position_embedding is not None:
            x_BSE = self.position_embedding(x_BSE, placement)
        return self.stack(self.dropout(x_BSE), placement, caches)

    def loss(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, in nats per token, of tokens 1 to S - 1, each given all tokens before it.

        With a mask, those count that are real behind a real one. Computed in float32 whatever the weights are, and
        0 where no token counts, as in an empty batch.
        """
        check_tokens("tokens", tokens, self.config.vocab_size, self.token_embedding.weight.device)
        if tokens.shape[1] < 2:
            raise ValueError(f"a loss needs at least 2 tokens per sequence, got shape {tuple(tokens.shape)}")
        if attention_mask is None:
            return mean_cross_entropy(self(tokens[:, :-1]), tokens[:, 1:])
        check_mask("attention_mask", attention_mask, tokens.shape, tokens.device)
        before, after = attention_mask[:, :-1], attention_mask[:, 1:]
        return mean_cross_entropy(self(tokens[:, :-1], before), tokens[:, 1:], before & after)

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        attention_mask: Tensor | None = None,
        eos_token_id: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each sequence by `max_new_tokens` tokens, one at a time, with dropout off.

        Args:
            tokens: the prompts, int32 or int64, (B, S), S at least 1.
            max_new_tokens: how many tokens to append; S + max_new_tokens is at most max_seq_len.
            attention_mask: bool, (B, S), True for a real token and False for padding; None: no padding. Prompts of
                different lengths are padded on the left: the last column holds the token to continue.
            eos_token_id: ends a sequence and fills the rest of its row; None: no sequence ends early.
            temperature: logits are divided by it; 0 takes the most probable token each time (greedy).
            top_k: draw among the k most probable tokens only; None: among all.
            generator: the source of randomness, on the model's device; None: PyTorch's own.

        Returns:
            Tensor (B, S + max_new_tokens) of the prompts' dtype: prompts and continuations.

        Raises:
            ValueError: an argument is out of range, padding stands last in a row, or the context overflows.
        """
        device = self.token_embedding.weight.device
        check_tokens("tokens", tokens, self.config.vocab_size, device)
        check_room(tokens.shape[1], max_new_tokens, self.config.max_seq_len)
        check_eos(eos_token_id, self.config.vocab_size)
        sampler = generation.Sampler(temperature, top_k, generator)
        if attention_mask is not None:
            check_mask("attention_mask", attention_mask, tokens.shape, device)
            if not attention_mask[:, -1].all():
                raise ValueError("attention_mask has padding in its last column: pad prompts on the left")
            attention_mask = F.pad(attention_mask, (0, max_new_tokens), value=True)
        caches = self.stack.new_caches(tokens.shape[1] + max_new_tokens)

        def next_logits(new_BS: Tensor) -> Tensor:
            end = caches[0].length + new_BS.shape[1]
            mask_BT = None if attention_mask is None else attention_mask[:, :end]
            return self.unembed(self.hidden(new_BS, mask_BT, caches)[:, -1])

        with generation.evaluating(self):
            return generation.extend(tokens, max_new_tokens, next_logits, sampler, eos_token_id)
