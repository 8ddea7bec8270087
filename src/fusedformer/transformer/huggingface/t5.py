"""T5 and T5 1.1. Source: the checkpoints that Hugging Face publishes (T5ForConditionalGeneration)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusedformer.transformer.config import Activation, TransformerConfig
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.huggingface.configs import check_computed, check_equal, check_head_dim, read_sizes
from fusedformer.transformer.huggingface.family import Family, Names

SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "d_ff": "d_ff",
    "relative_buckets": "relative_attention_num_buckets",
    "norm_eps": "layer_norm_epsilon",
}
ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gated-gelu": "geglu_tanh"}
COMPUTED = {"feed_forward_proj": tuple(ACTIVATIONS)}


def configure(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TransformerConfig:
    """Our configuration from theirs."""
    check_computed(config, COMPUTED)
    check_equal(config, "num_layers", "num_decoder_layers")
    sizes = read_sizes(config, SIZES)
    check_head_dim("d_kv", config.get("d_kv"), sizes["d_model"], sizes["n_heads"])
    # From version 5 of transformers on, `scale_decoder_outputs` says what `tie_word_embeddings` did before.
    tied = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    start = config.get("decoder_start_token_id")
    return TransformerConfig(
        **sizes,
        max_seq_len=config.get("n_positions", 512),
        relative_max_distance=config.get("relative_attention_max_distance", 128),
        activation=ACTIVATIONS[config.get("feed_forward_proj", "relu")],
        dropout=config.get("dropout_rate", 0.1),
        decoder_start_token_id=config.get("pad_token_id", 0) if start is None else start,
        positions="relative",
        norm="rms",
        bias=False,
        tie_embeddings=tied,
        scale_tied_head=tied,
        scale_attention=False,
    )


def block_names(side: str, last_layer: int) -> dict[str, Names]:
    """What encoder and decoder have in common; the feed-forward is the last of a block's layers."""
    ours, theirs = f"{side}.blocks.{{}}", f"{side}.block.{{}}.layer"
    return {
        f"{side}.positions.scores": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{ours}.attention_residual.norm": f"{theirs}.0.layer_norm",
        f"{ours}.attention.qkv": tuple(f"{theirs}.0.SelfAttention.{x}" for x in "qkv"),
        f"{ours}.attention.out": f"{theirs}.0.SelfAttention.o",
        f"{ours}.feed_forward_residual.norm": f"{theirs}.{last_layer}.layer_norm",
        f"{ours}.feed_forward.up": f"{theirs}.{last_layer}.DenseReluDense.wi",
        f"{ours}.feed_forward.down": f"{theirs}.{last_layer}.DenseReluDense.wo",
        f"{side}.final_norm": f"{side}.final_layer_norm",
    }


CROSS, THEIR_CROSS = "decoder.blocks.{}.cross_attention", "decoder.block.{}.layer.1"
NAMES: dict[str, Names] = {
    "token_embedding": "shared",
    **block_names("encoder", last_layer=1),
    **block_names("decoder", last_layer=2),
    f"{CROSS}_residual.norm": f"{THEIR_CROSS}.layer_norm",
    f"{CROSS}.query": f"{THEIR_CROSS}.EncDecAttention.q",
    f"{CROSS}.key_value": (f"{THEIR_CROSS}.EncDecAttention.k", f"{THEIR_CROSS}.EncDecAttention.v"),
    f"{CROSS}.out": f"{THEIR_CROSS}.EncDecAttention.o",
    "head": "lm_head",
}
FAMILY = Family(
    model=EncoderDecoder,
    configure=configure,
    names=NAMES,
    gated_names={ours: (f"{up}_0", f"{up}_1") for ours, up in NAMES.items() if ours.endswith(".feed_forward.up")},
    # Copies of the table, and a bias that old files have and no version reads.
    unused=(
        r"(en|de)coder\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
)
