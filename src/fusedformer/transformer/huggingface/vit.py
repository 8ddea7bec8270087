"""The vision transformer. Source: the checkpoints that Hugging Face publishes (ViTModel, ViTForImageClassification)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.huggingface.configs import ACTIVATIONS, check_computed, read_sizes
from fusedformer.transformer.huggingface.family import BATCHED, PATCHES, Family
from fusedformer.transformer.huggingface.vision import ATTENTION_SPELLINGS, IMAGE_SIZES
from fusedformer.transformer.vision_transformer import VisionTransformer

SIZES = {**IMAGE_SIZES, "d_ff": "intermediate_size"}
COMPUTED = {"hidden_act": tuple(ACTIVATIONS), "qkv_bias": (True,)}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs; the tensors say whether there is a head, and for how many classes."""
    check_computed(config, COMPUTED)
    return TransformerConfig(
        **read_sizes(config, SIZES),
        n_classes=len(tensors.get("classifier.weight", ())),
        activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
        dropout=config.get("hidden_dropout_prob", 0.0),
    )


LAYER = "layers.{}"
FAMILY = Family(
    model=VisionTransformer,
    configure=configure,
    names={
        "class_token": "embeddings.cls_token",
        "position_embedding.weight": "embeddings.position_embeddings",
        "patch_embedding": "embeddings.patch_embeddings.projection",
        "stack.blocks.{}.attention_residual.norm": f"{LAYER}.layernorm_before",
        "stack.blocks.{}.attention.qkv": tuple(f"{LAYER}.attention.{x}_proj" for x in "qkv"),
        "stack.blocks.{}.attention.out": f"{LAYER}.attention.o_proj",
        "stack.blocks.{}.feed_forward_residual.norm": f"{LAYER}.layernorm_after",
        "stack.blocks.{}.feed_forward.up": f"{LAYER}.mlp.fc1",
        "stack.blocks.{}.feed_forward.down": f"{LAYER}.mlp.fc2",
        "stack.final_norm": "layernorm",
        "head": "classifier",
    },
    layouts={"class_token": BATCHED, "position_embedding.weight": BATCHED, "patch_embedding.weight": PATCHES},
    # The names of version 5 of transformers; before it they were BERT's.
    spellings=(
        (r"^vit\.", ""),
        (r"^encoder\.layer\.", "layers."),
        *ATTENTION_SPELLINGS,
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    ),
    unused=(r"pooler\..*", r"embeddings\.mask_token"),  # a layer that no head reads, and of pre-training alone
)
