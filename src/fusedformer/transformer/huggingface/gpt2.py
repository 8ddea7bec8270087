"""GPT-2. Source: the checkpoints that Hugging Face publishes (GPT2LMHeadModel), matrices (in, out)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.huggingface.configs import ACTIVATIONS, check_computed, read_sizes
from fusedformer.transformer.huggingface.family import TRANSPOSED, Family

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "n_positions",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
}
COMPUTED = {
    "activation_function": ("gelu_new", *ACTIVATIONS),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs."""
    check_computed(config, COMPUTED)
    sizes = read_sizes(config, SIZES)
    return TransformerConfig(
        **sizes,
        d_ff=config.get("n_inner") or 4 * sizes["d_model"],
        activation=ACTIVATIONS[config.get("activation_function", "gelu_new")],
        dropout=config.get("resid_pdrop", 0.1),
        tie_embeddings=config.get("tie_word_embeddings", True),
    )


LAYERS = {
    "stack.blocks.{}.attention.qkv": "h.{}.attn.c_attn",
    "stack.blocks.{}.attention.out": "h.{}.attn.c_proj",
    "stack.blocks.{}.feed_forward.up": "h.{}.mlp.c_fc",
    "stack.blocks.{}.feed_forward.down": "h.{}.mlp.c_proj",
}
FAMILY = Family(
    model=Decoder,
    configure=configure,
    names={
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "stack.blocks.{}.attention_residual.norm": "h.{}.ln_1",
        "stack.blocks.{}.feed_forward_residual.norm": "h.{}.ln_2",
        **LAYERS,
        "stack.final_norm": "ln_f",
        "head": "lm_head",
    },
    layouts={f"{layer}.weight": TRANSPOSED for layer in LAYERS},
    spellings=((r"^transformer\.", ""),),
    unused=(r"h\.\d+\.attn\.(masked_)?bias",),  # the causal mask, in old files
)
