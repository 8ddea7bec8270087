"""A Llama in GGUF, such as SmolLM2: its configuration and tensors as Hugging Face's LlamaForCausalLM has them.

Source of the names: the tables of llama.cpp (gguf-py/gguf/tensor_mapping.py) and its convert_hf_to_gguf.py, which are
undone here.
"""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fusedformer.transformer.formats import gguf
from fusedformer.transformer.formats.binary import as_written

# In config.json: in the metadata, behind "llama.".
SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
NUMBERS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DEFAULT_ROPE_THETA = 10000.0  # Llama's first; llama.cpp's default, too


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of config.json and tensors, float32, under Hugging Face's names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file of a Llama, or is truncated or corrupt.
    """
    metadata, tensors = gguf.read(path)
    config = read_config(path, metadata, tensors)
    return config, rename(path, tensors, config["num_attention_heads"], config["num_key_value_heads"])


def read_config(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path} holds a model of architecture {architecture!r}: llama is read from GGUF")
    missing = [key for key in (*SIZES.values(), *NUMBERS.values()) if f"llama.{key}" not in metadata]
    missing = [key for key in missing if key not in OPTIONAL]
    missing += [name for name in ("token_embd.weight",) if name not in tensors]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    sizes = pick(path, metadata, SIZES, int)
    heads = sizes["num_attention_heads"]
    defaults = {"num_key_value_heads": heads, "head_dim": sizes["hidden_size"] // heads}
    config = {"rope_theta": DEFAULT_ROPE_THETA} | defaults | sizes | pick(path, metadata, NUMBERS, float)
    return config | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(tensors["token_embd.weight"]),
        "hidden_act": "silu",
        "rope_scaling": read_rope_scaling(path, metadata, config["head_dim"]),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def pick(path: Path, metadata: dict[str, Any], keys: dict[str, str], kind: type[int] | type[float]) -> dict[str, Any]:
    """The fields that the metadata has, each a positive number of this type."""
    found = {ours: metadata[f"llama.{key}"] for ours, key in keys.items() if f"llama.{key}" in metadata}
    for ours, value in found.items():
        if type(value) is not kind or not 0 < value < math.inf:
            raise ValueError(f"{path} is corrupt: llama.{keys[ours]} is {value!r}, no positive {kind.__name__}")
    return {ours: as_written(value) if kind is float else value for ours, value in found.items()}


def read_rope_scaling(path: Path, metadata: dict[str, Any], head_dim: int) -> dict[str, Any] | None:
    rotated = metadata.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ValueError(f"{path} rotates {rotated} of {head_dim} dimensions of a head: a Llama rotates all")
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise ValueError(f"{path} scales its rotary positions by {kind!r}: none and linear are read from GGUF")
    return {"rope_type": "linear", "factor": 1.0, **pick(path, metadata, {"factor": "rope.scaling.factor"}, float)}


def rename(path: Path, tensors: dict[str, Tensor], n_heads: int, n_kv_heads: int) -> dict[str, Tensor]:
    """The tensors under Hugging Face's names; one that no Llama has keeps its own, and is reported as extra later."""
    renamed = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        layer, module, kind = match.groups() if match else (None, name, "")
        if module in ("attn_q", "attn_k"):
            tensor = unpermute(path, name, tensor, n_heads if module == "attn_q" else n_kv_heads)
        if layer is not None and module in LAYER_NAMES:
            name = f"model.layers.{layer}.{LAYER_NAMES[module]}.{kind}"
        elif layer is None and module in NAMES:
            name = f"{NAMES[module]}.{kind}"
        renamed[name] = tensor
    return renamed


def unpermute(path: Path, name: str, rows: Tensor, n_heads: int) -> Tensor:
    """The rows of a query or key projection in the order of Hugging Face, whose rotary turns halves of a head.

    llama.cpp turns neighbours instead, so its converter puts rows i and i + D/2 of each head of D side by side.
    """
    if n_heads < 1 or len(rows) % (2 * n_heads):
        raise ValueError(f"{path} is corrupt: {name} has {len(rows)} rows, no {n_heads} heads of even width")
    return rows.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
