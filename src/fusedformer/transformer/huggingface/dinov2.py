"""DINOv2's backbone, with or without registers: no class has a name there, so the model gives one vector per image.

Source: the checkpoints that Hugging Face publishes (Dinov2Model, Dinov2WithRegistersModel).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.huggingface.configs import ACTIVATIONS, check_computed, read_sizes
from fusedformer.transformer.huggingface.family import BATCHED, PATCHES, Family
from fusedformer.transformer.huggingface.vision import ATTENTION_SPELLINGS, IMAGE_SIZES
from fusedformer.transformer.vision_transformer import VisionTransformer

COMPUTED = {"hidden_act": tuple(ACTIVATIONS), "qkv_bias": (True,), "use_swiglu_ffn": (False,)}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs."""
    check_computed(config, COMPUTED)
    sizes = read_sizes(config, IMAGE_SIZES)
    return TransformerConfig(
        **sizes,
        d_ff=int(sizes["d_model"] * config.get("mlp_ratio", 4)),
        n_registers=config.get("num_register_tokens", 0),
        activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
        layer_scale=config.get("layerscale_value", 1.0),
        dropout=config.get("hidden_dropout_prob", 0.0),
        stochastic_depth=config.get("drop_path_rate", 0.0),
        antialias_positions=config.get("model_type") == "dinov2_with_registers",
    )


LAYER = "encoder.layer.{}"
FAMILY = Family(
    model=VisionTransformer,
    configure=configure,
    names={
        "class_token": "embeddings.cls_token",
        "registers": "embeddings.register_tokens",
        "position_embedding.weight": "embeddings.position_embeddings",
        "patch_embedding": "embeddings.patch_embeddings.projection",
        "stack.blocks.{}.attention_residual.norm": f"{LAYER}.norm1",
        "stack.blocks.{}.attention_residual.layer_scale": f"{LAYER}.layer_scale1.lambda1",
        "stack.blocks.{}.attention.qkv": tuple(f"{LAYER}.attention.{x}_proj" for x in "qkv"),
        "stack.blocks.{}.attention.out": f"{LAYER}.attention.o_proj",
        "stack.blocks.{}.feed_forward_residual.norm": f"{LAYER}.norm2",
        "stack.blocks.{}.feed_forward_residual.layer_scale": f"{LAYER}.layer_scale2.lambda1",
        "stack.blocks.{}.feed_forward.up": f"{LAYER}.mlp.fc1",
        "stack.blocks.{}.feed_forward.down": f"{LAYER}.mlp.fc2",
        "stack.final_norm": "layernorm",
    },
    layouts={
        "class_token": BATCHED,
        "registers": BATCHED,
        "position_embedding.weight": BATCHED,
        "patch_embedding.weight": PATCHES,
    },
    spellings=(
        (r"^dinov2(_with_registers)?\.", ""),
        *ATTENTION_SPELLINGS,
    ),
    unused=(r"embeddings\.mask_token",),  # of training alone
)
