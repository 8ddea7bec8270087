"""The encoder of BERT: every token attends to every other, and comes out as a vector that knows its context.

Dimensions: B batch, S sequence, N tokens of packed sequences, E d_model.
Source: Devlin et al. 2019, "BERT" (arXiv:1810.04805); Reimers and Gurevych 2019 (arXiv:1908.10084) for mean pooling.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer.blocks import Stack, make_norm
from fusedformer.transformer.checks import check_mask, check_tensor, check_tokens
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import TextModel, initialise
from fusedformer.transformer.outputs import pool, pool_packed
from fusedformer.transformer.positions import make_position_embedding, place, place_packed


class Encoder(TextModel):
    """Tokens in, one context-aware vector per token out.

    Post-norm as in BERT, the embeddings are normalised before the first block; pre-norm, they are not.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.position_embedding = make_position_embedding(config)
        self.type_embedding = nn.Embedding(config.type_vocab_size, config.d_model) if config.type_vocab_size else None
        self.embedding_norm = make_norm(config) if config.norm_position == "post" else None
        self.stack = Stack(config)
        initialise(self)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Encode a batch of sequences, padded or packed: real tokens come out as they would alone.

        Args:
            tokens: int32 or int64, (B, S), values below vocab_size. Packed: (N,), all sequences one behind the other.
            attention_mask: bool, (B, S), True for a real token and False for padding; None: no padding. Padding may
                stand anywhere. Or (B, S, S), True where a position (row) may attend to another (column).
            token_type_ids: int32 or int64, of the tokens' shape, values below type_vocab_size; None: all 0.
            cu_seqlens: int32, (B + 1,), of packed sequences: where each starts, then N; see `pack`. Not with a mask.

        Returns:
            Tensor (B, S, E), packed (N, E); what stands at padding positions means nothing.

        Raises:
            ValueError: a shape, dtype, device or token is wrong, a sequence is longer than max_seq_len, or packed ones
                have relative positions.
        """
        if cu_seqlens is None:
            return self.encode(tokens, attention_mask, token_type_ids)
        if attention_mask is not None:
            raise ValueError("attention_mask and cu_seqlens were given: sequences are padded or packed")
        check_tensor("tokens", tokens, self.token_embedding.weight.device)
        if tokens.dim() != 1:
            raise ValueError(f"packed tokens must be of shape (N,), got {tuple(tokens.shape)}")
        types = token_type_ids.unsqueeze(0) if isinstance(token_type_ids, Tensor) else token_type_ids
        return self.encode(tokens.unsqueeze(0), None, types, cu_seqlens).squeeze(0)

    def encode(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """As `forward`; packed sequences are a batch of one."""
        x_BSE = self.token_embedding(tokens)
        if cu_seqlens is None:
            placement = place(x_BSE, attention_mask, self.config.max_seq_len)
        else:
            placement = place_packed(x_BSE, cu_seqlens, self.config.max_seq_len)
        if self.position_embedding is not None:
            x_BSE = self.position_embedding(x_BSE, placement)
        if token_type_ids is not None:
            x_BSE = x_BSE + self.embed_types(token_type_ids, tokens)
        elif self.type_embedding is not None:
            x_BSE = x_BSE + self.type_embedding.weight[0]
        if self.embedding_norm is not None:
            x_BSE = self.embedding_norm(x_BSE)
        return self.stack(self.dropout(x_BSE), placement)

    def embed_types(self, token_type_ids: Tensor, tokens: Tensor) -> Tensor:
        if self.type_embedding is None:
            raise ValueError("token_type_ids were given, but the configuration has type_vocab_size 0")
        check_tokens("token_type_ids", token_type_ids, self.config.type_vocab_size, tokens.device)
        if token_type_ids.shape != tokens.shape:
            raise ValueError(f"token_type_ids have shape {tuple(token_type_ids.shape)}, tokens {tuple(tokens.shape)}")
        return self.type_embedding(token_type_ids)

    def embed(
        self, tokens: Tensor, attention_mask: Tensor | None = None, *, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Sequence embeddings of unit length, (B, E): dot products between them are cosine similarities.

        With pooling "class" that of the first real token, with "mean" the mean of the real ones'; a row of padding
        alone, or a packed sequence of no token, gives zeros. Arguments and errors are those of `forward`.
        """
        if attention_mask is not None and isinstance(tokens, Tensor):
            check_mask("attention_mask", attention_mask, tokens.shape, tokens.device)
        hidden = self(tokens, attention_mask, cu_seqlens=cu_seqlens)
        if cu_seqlens is None:
            pooled_BE = pool(hidden, self.config.pooling, attention_mask)
        else:
            pooled_BE = pool_packed(hidden, self.config.pooling, cu_seqlens)
        # In float16 a square overflows from 256 on, and the eps that keeps 0 / 0 out is 0.
        return F.normalize(pooled_BE.to(accumulate_dtype(pooled_BE.dtype)), dim=-1).to(pooled_BE.dtype)

    @staticmethod
    def pack(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens (N,) and cu_seqlens (B + 1,) of sequences (S_i,) of any lengths, for `forward` and `embed`.

        Raises:
            ValueError: there is no sequence, or one has another number of dimensions than 1.
        """
        if not sequences or any(sequence.dim() != 1 for sequence in sequences):
            shapes = ", ".join(str(tuple(sequence.shape)) for sequence in sequences)
            raise ValueError(f"sequences must be at least one, each of shape (S,), got [{shapes}]")
        ends = torch.tensor([0, *(len(sequence) for sequence in sequences)]).cumsum(0)
        return torch.cat(list(sequences)), ends.to(sequences[0].device, torch.int32)
