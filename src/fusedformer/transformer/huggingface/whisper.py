"""Whisper. Source: the checkpoints that Hugging Face publishes (WhisperForConditionalGeneration)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.huggingface.configs import ACTIVATIONS, check_computed, check_equal, read_sizes
from fusedformer.transformer.huggingface.family import Family, Names

SIZES = {
    "vocab_size": "vocab_size",
    "max_seq_len": "max_target_positions",
    "max_source_len": "max_source_positions",
    "n_mels": "num_mel_bins",
    "d_model": "d_model",
    "n_layers": "decoder_layers",
    "n_heads": "decoder_attention_heads",
    "d_ff": "decoder_ffn_dim",
    "decoder_start_token_id": "decoder_start_token_id",
}
COMPUTED = {
    "activation_function": tuple(ACTIVATIONS),
    "scale_embedding": (False,),
    "tie_word_embeddings": (True,),
}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs."""
    check_computed(config, COMPUTED)
    for size in ("layers", "attention_heads", "ffn_dim"):
        check_equal(config, f"encoder_{size}", f"decoder_{size}")
    return TransformerConfig(
        **read_sizes(config, SIZES),
        activation=ACTIVATIONS[config.get("activation_function", "gelu")],
        dropout=config.get("dropout", 0.0),
    )


def block_names(ours: str, theirs: str) -> dict[str, Names]:
    """What encoder and decoder have in common. Keys have no bias there, which would not change any softmax: 0 here."""
    return {
        f"{ours}.attention_residual.norm": f"{theirs}.self_attn_layer_norm",
        f"{ours}.attention.qkv.weight": tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv"),
        f"{ours}.attention.qkv.bias": (f"{theirs}.self_attn.q_proj.bias", None, f"{theirs}.self_attn.v_proj.bias"),
        f"{ours}.attention.out": f"{theirs}.self_attn.out_proj",
        f"{ours}.feed_forward_residual.norm": f"{theirs}.final_layer_norm",
        f"{ours}.feed_forward.up": f"{theirs}.fc1",
        f"{ours}.feed_forward.down": f"{theirs}.fc2",
    }


CROSS, THEIR_CROSS = "decoder.blocks.{}.cross_attention", "decoder.layers.{}.encoder_attn"
FAMILY = Family(
    model=EncoderDecoder,
    configure=configure,
    names={
        "audio_embedding.conv1": "encoder.conv1",
        "audio_embedding.conv2": "encoder.conv2",
        "token_embedding": "decoder.embed_tokens",
        "target_position_embedding": "decoder.embed_positions",
        **block_names("encoder.blocks.{}", "encoder.layers.{}"),
        **block_names("decoder.blocks.{}", "decoder.layers.{}"),
        f"{CROSS}_residual.norm": f"{THEIR_CROSS}_layer_norm",
        f"{CROSS}.query": f"{THEIR_CROSS}.q_proj",
        f"{CROSS}.key_value.weight": (f"{THEIR_CROSS}.k_proj.weight", f"{THEIR_CROSS}.v_proj.weight"),
        f"{CROSS}.key_value.bias": (None, f"{THEIR_CROSS}.v_proj.bias"),
        f"{CROSS}.out": f"{THEIR_CROSS}.out_proj",
        "encoder.final_norm": "encoder.layer_norm",
        "decoder.final_norm": "decoder.layer_norm",
        "head": "proj_out",
    },
    spellings=((r"^model\.", ""),),
    unused=(r"encoder\.embed_positions\.weight",),  # fixed sines, computed here
)
