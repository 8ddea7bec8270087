"""The models of fusedformer.transformer as one builds them of torch.nn: what ours are timed against.

Modules have our names where there is a choice, so that our weights load with few renamings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.transformer.config import TransformerConfig

# Ours to torch.nn's, inside a stack of blocks.
RENAMINGS = {
    "stack.blocks.": "stack.layers.",
    "stack.final_norm.": "stack.norm.",
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
    for ours, theirs in RENAMINGS.items():
        our_name = our_name.replace(ours, theirs)
    return our_name


@torch.no_grad()
def load_ours(theirs: nn.Module, ours: nn.Module) -> None:
    """Copy our weights into torch.nn's model; a RuntimeError lists what does not fit, so the sizes are the same."""
    shapes = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    named = {their_name(name): parameter for name, parameter in ours.named_parameters()}
    theirs.load_state_dict(
        {name: parameter.reshape(shapes.get(name, parameter.shape)) for name, parameter in named.items()}
    )


def _stack(config: TransformerConfig) -> nn.TransformerEncoder:
    is_pre_norm = config.norm_position == "pre"
    layer = nn.TransformerEncoderLayer(
        config.d_model,
        config.n_heads,
        config.d_ff,
        dropout=config.dropout,
        activation=config.activation,
        layer_norm_eps=config.norm_eps,
        batch_first=True,
        norm_first=is_pre_norm,
    )
    norm = _norm(config) if is_pre_norm else None
    return nn.TransformerEncoder(layer, config.n_layers, norm, enable_nested_tensor=False)


def _norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.d_model, eps=config.norm_eps)
