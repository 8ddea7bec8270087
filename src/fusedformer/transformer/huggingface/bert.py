"""BERT. Source: the checkpoints that Hugging Face publishes (BertModel), as sentence-transformers uses them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.huggingface.configs import ACTIVATIONS, check_computed, read_sizes
from fusedformer.transformer.huggingface.family import Family

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
COMPUTED = {
    "hidden_act": tuple(ACTIVATIONS),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs; pooling is BERT's own, the class token, unless a field of ours says "mean"."""
    check_computed(config, COMPUTED)
    return TransformerConfig(
        **read_sizes(config, SIZES),
        activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
        norm_position="post",
        pooling=config.get("pooling", "class"),
    )


LAYER = "encoder.layer.{}"
FAMILY = Family(
    model=Encoder,
    configure=configure,
    names={
        "token_embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "type_embedding": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "stack.blocks.{}.attention.qkv": tuple(f"{LAYER}.attention.self.{x}" for x in ("query", "key", "value")),
        "stack.blocks.{}.attention.out": f"{LAYER}.attention.output.dense",
        "stack.blocks.{}.attention_residual.norm": f"{LAYER}.attention.output.LayerNorm",
        "stack.blocks.{}.feed_forward.up": f"{LAYER}.intermediate.dense",
        "stack.blocks.{}.feed_forward.down": f"{LAYER}.output.dense",
        "stack.blocks.{}.feed_forward_residual.norm": f"{LAYER}.output.LayerNorm",
    },
    # A model with heads has the encoder's names behind a prefix; what the first checkpoints, converted from TensorFlow,
    # call a norm's weight and bias.
    spellings=(
        (r"^bert\.", ""),
        (r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),
        (r"\.LayerNorm\.beta$", ".LayerNorm.bias"),
    ),
    # The position numbers 0, 1, 2, ..., a layer over the first token that only BERT's own pre-training reads, and the
    # heads of pre-training.
    unused=(r"embeddings\.position_ids", r"pooler\..*", r"cls\..*"),
)
