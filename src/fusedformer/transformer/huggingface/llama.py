"""Llama, and what is built like it: SmolLM2. Source: the checkpoints that Hugging Face publishes (LlamaForCausalLM)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.huggingface.configs import check_computed, check_head_dim, read_sizes
from fusedformer.transformer.huggingface.family import Family

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
COMPUTED = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
ROPE_COMPUTED = {"rope_type": ("default", "linear", "llama3")}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs."""
    check_computed(config, COMPUTED)
    sizes = read_sizes(config, SIZES)
    check_head_dim("head_dim", config.get("head_dim"), sizes["d_model"], sizes["n_heads"])
    return TransformerConfig(
        **sizes,
        **rotary_fields(config, sizes["d_model"] // sizes["n_heads"]),
        n_kv_heads=config.get("num_key_value_heads"),
        positions="rotary",
        norm="rms",
        activation="swiglu",
        bias=False,
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def rotary_fields(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Base and scaling; from version 5 of transformers on they are one entry, before it was two."""
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    rope = {**rope, **(config.get("rope_parameters") or {})}
    rope.setdefault("rope_type", rope.get("type", "default"))  # the older name
    check_computed(rope, ROPE_COMPUTED)
    part = rope.get("partial_rotary_factor", 1.0)
    fields: dict[str, Any] = {
        "rotary_base": float(rope["rope_theta"]),
        "rotary_dim": 0 if part == 1 else int(head_dim * part),
    }
    if rope["rope_type"] == "default":
        return fields
    fields |= {"rotary_scaling": rope["rope_type"], **read_sizes(rope, {"rotary_factor": "factor"})}
    if rope["rope_type"] == "llama3":
        fields |= read_sizes(
            rope,
            {
                "rotary_low_freq_factor": "low_freq_factor",
                "rotary_high_freq_factor": "high_freq_factor",
                "rotary_original_len": "original_max_position_embeddings",
            },
        )
    return fields


LAYER = "layers.{}"
FAMILY = Family(
    model=Decoder,
    configure=configure,
    names={
        "token_embedding": "embed_tokens",
        "stack.blocks.{}.attention_residual.norm": f"{LAYER}.input_layernorm",
        "stack.blocks.{}.attention.qkv": tuple(f"{LAYER}.self_attn.{x}_proj" for x in "qkv"),
        "stack.blocks.{}.attention.out": f"{LAYER}.self_attn.o_proj",
        "stack.blocks.{}.feed_forward_residual.norm": f"{LAYER}.post_attention_layernorm",
        "stack.blocks.{}.feed_forward.up": (f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"),
        "stack.blocks.{}.feed_forward.down": f"{LAYER}.mlp.down_proj",
        "stack.final_norm": "norm",
        "head": "lm_head",
    },
    spellings=((r"^model\.", ""),),
    unused=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
)
