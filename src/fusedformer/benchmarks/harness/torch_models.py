"""The models of fusedformer.transformer as one builds them of torch.nn: what ours are timed against.

Modules have our names where there is a choice, so that our weights load with few renamings.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.transformer.cache import KeyValueCache
from fusedformer.transformer.config import TransformerConfig

# Ours to torch.nn's, in this order.
RENAMINGS = {
    ".blocks.": ".layers.",
    ".final_norm.": ".norm.",
    "cross_attention_residual.norm.": "norm2.",
    "cross_attention.query.": "multihead_attn.in_proj_",  # the one on top of the other
    "cross_attention.key_value.": "multihead_attn.in_proj_",
    "cross_attention.out.": "multihead_attn.out_proj.",
    "attention_residual.norm.": "norm1.",
    "feed_forward_residual.norm.": "norm2.",
    "attention.qkv.": "self_attn.in_proj_",
    "attention.out.": "self_attn.out_proj.",
    "feed_forward.up.": "linear1.",
    "feed_forward.down.": "linear2.",
}


class TorchTextModel(nn.Module):
    """BERT's encoder, or with `causal` GPT's decoder with a tied head."""

    mask: Tensor | None

    def __init__(self, config: TransformerConfig, *, causal: bool = False) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.d_model)
        self.embedding_norm = nn.Identity() if config.norm_position == "pre" else _norm(config)
        self.stack = _stack(config)
        mask = nn.Transformer.generate_square_subsequent_mask(config.max_seq_len) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Hidden states (B, S, d_model), or logits (B, S, vocab_size) of the decoder."""
        S = tokens_BS.shape[1]
        x_BSE = self.embedding_norm(self.token_embedding(tokens_BS) + self.position_embedding.weight[:S])
        if self.mask is None:
            return self.stack(x_BSE)
        return F.linear(self.stack(x_BSE, mask=self.mask[:S, :S], is_causal=True), self.token_embedding.weight)

    def new_caches(self, max_seq_len: int) -> list[KeyValueCache]:
        """An empty cache for each layer."""
        return [KeyValueCache(max_seq_len) for _ in self.stack.layers]

    def advance(self, tokens_BS: Tensor, caches: Sequence[KeyValueCache]) -> Tensor:
        """Logits (B, vocab_size) of what follows these tokens, which continue those that are cached.

        torch.nn has no caches: this is its layers taken apart, with scaled_dot_product_attention.
        """
        first, S = caches[0].length, tokens_BS.shape[1]
        x_BSE = self.token_embedding(tokens_BS) + self.position_embedding.weight[first : first + S]
        for layer, cache in zip(self.stack.layers, caches, strict=True):
            assert isinstance(layer, nn.TransformerEncoderLayer)
            x_BSE = x_BSE + _cached_attention(layer.self_attn, layer.norm1(x_BSE), cache)
            x_BSE = x_BSE + layer.linear2(layer.activation(layer.linear1(layer.norm2(x_BSE))))
        assert self.stack.norm is not None  # these are pre-norm
        return F.linear(self.stack.norm(x_BSE[:, -1]), self.token_embedding.weight)


def _cached_attention(attention: nn.MultiheadAttention, x_BSE: Tensor, cache: KeyValueCache) -> Tensor:
    projected = F.linear(x_BSE, attention.in_proj_weight, attention.in_proj_bias)
    q_BSHD, k_BSHD, v_BSHD = (part.unflatten(-1, (attention.num_heads, -1)) for part in projected.chunk(3, dim=-1))
    q_BHSD, k_BHTD, v_BHTD = (part.transpose(1, 2) for part in (q_BSHD, *cache.append(k_BSHD, v_BSHD)))
    out_BHSD = F.scaled_dot_product_attention(q_BHSD, k_BHTD, v_BHTD, is_causal=x_BSE.shape[1] > 1)
    return attention.out_proj(out_BHSD.transpose(1, 2).flatten(2))


class TorchEncoderDecoder(nn.Module):
    """The original transformer with one token table for source, target and head."""

    mask: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.start = config.decoder_start_token_id
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.source_position_embedding = nn.Embedding(config.max_seq_len, config.d_model)
        self.target_position_embedding = nn.Embedding(config.max_seq_len, config.d_model)
        self.encoder = _stack(config)
        settings = _layer_settings(config)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**settings), config.n_layers, _norm(config))
        mask = nn.Transformer.generate_square_subsequent_mask(config.max_seq_len)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) of each target, given those before it."""
        S, T = source_BS.shape[1], target_BT.shape[1]
        memory_BSE = self.encoder(self.token_embedding(source_BS) + self.source_position_embedding.weight[:S])
        shifted_BT = F.pad(target_BT[:, :-1], (1, 0), value=self.start)
        x_BTE = self.token_embedding(shifted_BT) + self.target_position_embedding.weight[:T]
        x_BTE = self.decoder(x_BTE, memory_BSE, tgt_mask=self.mask[:T, :T], tgt_is_causal=True)
        return F.linear(x_BTE, self.token_embedding.weight)


class TorchVisionTransformer(nn.Module):
    """ViT with a class token; patches are a convolution, as in torchvision."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        patch, n_patches = config.patch_size, (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(config.n_channels, config.d_model, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(config.d_model))
        self.position_embedding = nn.Embedding(n_patches + 1, config.d_model)
        self.stack = _stack(config)
        self.head = nn.Linear(config.d_model, config.n_classes)

    def forward(self, images_BCII: Tensor) -> Tensor:
        """Logits (B, n_classes)."""
        x_BSE = self.patch_embedding(images_BCII).flatten(2).transpose(1, 2)
        x_BSE = torch.cat([self.class_token.expand(len(x_BSE), 1, -1), x_BSE], dim=1)
        return self.head(self.stack(x_BSE + self.position_embedding.weight)[:, 0])


def their_name(our_name: str) -> str:
    """The name in torch.nn's model of one of our parameters."""
    name = our_name
    if our_name.startswith("decoder."):  # its cross-attention has the second norm
        name = name.replace("feed_forward_residual.norm.", "norm3.")
    for ours, theirs in RENAMINGS.items():
        name = name.replace(ours, theirs)
    return name


def as_theirs(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What belongs to our parameters, by torch.nn's names; where it keeps several in one, they are stacked."""
    parts: dict[str, list[Tensor]] = {}
    for name, value in named:
        parts.setdefault(their_name(name), []).append(value)
    return {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in parts.items()}


@torch.no_grad()
def load_ours(theirs: nn.Module, ours: nn.Module) -> None:
    """Copy our weights into torch.nn's model; a RuntimeError lists what does not fit, so the sizes are the same."""
    shapes = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    named = as_theirs(ours.named_parameters())
    theirs.load_state_dict(
        {name: parameter.reshape(shapes.get(name, parameter.shape)) for name, parameter in named.items()}
    )


def _stack(config: TransformerConfig) -> nn.TransformerEncoder:
    norm = _norm(config) if config.norm_position == "pre" else None
    layer = nn.TransformerEncoderLayer(**_layer_settings(config))
    return nn.TransformerEncoder(layer, config.n_layers, norm, enable_nested_tensor=False)


def _layer_settings(config: TransformerConfig) -> dict[str, Any]:
    return {
        "d_model": config.d_model,
        "nhead": config.n_heads,
        "dim_feedforward": config.d_ff,
        "dropout": config.dropout,
        "activation": config.activation,
        "layer_norm_eps": config.norm_eps,
        "batch_first": True,
        "norm_first": config.norm_position == "pre",
    }


def _norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.d_model, eps=config.norm_eps)
