"""The vision transformers of timm: plain, or DINOv2's with registers. Source: the checkpoints it publishes (vit_*).

Their config.json names an architecture, not its sizes: those are read off the tensors, but for the number of heads.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.huggingface.configs import check_computed
from fusedformer.transformer.huggingface.family import BATCHED, PATCHES, Family
from fusedformer.transformer.vision_transformer import VisionTransformer

# Heads by the size that the name of an architecture has, vit_small_patch16_224; timm's own are its defaults for it.
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from the tensors of theirs."""
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(f"the weights do not fit the model: missing {', '.join(missing)}")
    has_class_token, registers = "cls_token" in tensors, tensors.get("reg_token")
    check_computed(config, {"global_pool": ("token" if has_class_token else "avg",)})
    d_model, n_channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    layer_scale = tensors.get("blocks.0.ls1.gamma")
    return TransformerConfig(
        image_size=patch_size * grid_size(tensors),
        patch_size=patch_size,
        n_channels=n_channels,
        n_classes=len(tensors.get("head.weight", ())),
        n_registers=0 if registers is None else registers.shape[1],
        d_model=d_model,
        n_layers=sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in tensors),
        n_heads=n_heads(config),
        d_ff=len(tensors["blocks.0.mlp.fc1.weight"]),
        norm_eps=1e-6,
        layer_scale=0.0 if layer_scale is None else 1.0,  # what it started at matters no more
        pooling="class" if has_class_token else "mean",
        antialias_positions=True,
    )


def n_heads(config: Mapping[str, Any]) -> int:
    """From the arguments of the architecture, or by the size in its name."""
    given = (config.get("model_args") or {}).get("num_heads")
    size = config["architecture"].split("_")[1] if "_" in config["architecture"] else ""
    if given is None and size not in HEADS:
        raise ValueError(f"architecture {config['architecture']!r} does not say its heads: give model_args num_heads")
    return HEADS[size] if given is None else given


def grid_size(tensors: Mapping[str, Tensor]) -> int:
    """Patches along a side of the image that the table of positions is for."""
    n_positions = tensors["pos_embed"].shape[1]
    # A table with rows for registers too is none of timm's own models'.
    n_patches = n_positions - ("cls_token" in tensors and not is_square(n_positions))
    if not is_square(n_patches):
        raise ValueError(f"pos_embed has {n_positions} positions: expected a square, and one of a class token")
    return math.isqrt(n_patches)


def is_square(number: int) -> bool:
    """Whether it is the square of an integer."""
    return math.isqrt(number) ** 2 == number


def add_class_row(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a position, 0, for a class token that has none of its own there."""
    positions = tensors.get("pos_embed")
    if positions is None or "cls_token" not in tensors or not is_square(positions.shape[1]):
        return tensors
    return {**tensors, "pos_embed": torch.cat([positions[:, :1] * 0, positions], dim=1)}


FAMILY = Family(
    model=VisionTransformer,
    configure=configure,
    names={
        "class_token": "cls_token",
        "registers": "reg_token",
        "position_embedding.weight": "pos_embed",
        "patch_embedding": "patch_embed.proj",
        "stack.blocks.{}.attention_residual.norm": "blocks.{}.norm1",
        "stack.blocks.{}.attention_residual.layer_scale": "blocks.{}.ls1.gamma",
        "stack.blocks.{}.attention.qkv": "blocks.{}.attn.qkv",
        "stack.blocks.{}.attention.out": "blocks.{}.attn.proj",
        "stack.blocks.{}.feed_forward_residual.norm": "blocks.{}.norm2",
        "stack.blocks.{}.feed_forward_residual.layer_scale": "blocks.{}.ls2.gamma",
        "stack.blocks.{}.feed_forward.up": "blocks.{}.mlp.fc1",
        "stack.blocks.{}.feed_forward.down": "blocks.{}.mlp.fc2",
        "stack.final_norm": "norm",
        "head": "head",
    },
    layouts={
        "class_token": BATCHED,
        "registers": BATCHED,
        "position_embedding.weight": BATCHED,
        "patch_embedding.weight": PATCHES,
    },
    prepare=add_class_row,
)
