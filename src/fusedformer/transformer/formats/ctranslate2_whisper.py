"""A Whisper in CTranslate2's format: its configuration and tensors as WhisperForConditionalGeneration has them.

Source of the names: CTranslate2's python/ctranslate2/converters/transformers.py (WhisperLoader), undone here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fusedformer.transformer.formats.ctranslate2 import read_variables
from fusedformer.transformer.formats.folder import read_json

SPECIFICATION = "WhisperSpec"
START_TOKEN = "<|startoftranscript|>"
# What other values of these would change, no Whisper computes.
COMPUTED = {
    "decoder/activation": 3,  # GELU, the exact one
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
# Which heads look where in the audio: config.json says it better.
UNUSED = ("decoder/alignment_heads", "decoder/alignment_layer")
GENERATION_FIELDS = {
    "suppress_tokens": "suppress_ids",
    "begin_suppress_tokens": "suppress_ids_begin",
    "alignment_heads": "alignment_heads",
}
MODULES = {
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
    "conv1": "conv1",
    "conv2": "conv2",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
KINDS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def read(paths: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of config.json and tensors, in the dtype of the file, under Hugging Face's names.

    The config.json beside the first part may add which tokens are never written, and which heads align text and audio;
    the vocabulary there, which token a transcript starts with.

    Raises:
        FileNotFoundError: if one of the parts is not there.
        ValueError: if they are no Whisper in CTranslate2's format, or truncated, corrupt or quantised to integers.
    """
    name = " + ".join(map(str, paths))
    specification, variables = read_variables(paths)
    if specification != SPECIFICATION:
        raise ValueError(f"{name} holds a {specification}: {SPECIFICATION} is read from CTranslate2")
    scalars = {key: tensor.item() for key, tensor in variables.items() if tensor.dim() == 0}
    for key, computed in COMPUTED.items():
        if scalars.get(key, computed) != computed:
            raise ValueError(f"{name}: {key} is {scalars[key]}, and a Whisper computes only {computed}")
    known = {*COMPUTED, *UNUSED, "decoder/num_heads", "encoder/num_heads"}
    tensors = rename(name, {key: tensor for key, tensor in variables.items() if key not in known})
    config = read_config(name, scalars, tensors)
    beside = paths[0].with_name("config.json")
    fields = read_json(beside) if beside.is_file() else {}
    config |= {ours: fields[theirs] for ours, theirs in GENERATION_FIELDS.items() if theirs in fields}
    return config | read_start_token(paths[0].with_name("vocabulary.txt")), tensors


def rename(name: str, variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under Hugging Face's names; one that no Whisper has keeps its own, and is reported as extra later."""
    if quantised := [key for key, tensor in variables.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{name} is quantised to integers: {', '.join(quantised)}")
    tensors = {}
    for key, tensor in variables.items():
        if key == "decoder/projection/weight":
            tensors["proj_out.weight"] = tensor
            continue
        match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", key)
        if match is None or match[3] not in MODULES:
            tensors[key] = tensor
            continue
        layer = "" if match[2] is None else f"layers.{match[2]}."
        theirs, kind = MODULES[match[3]], KINDS.get(match[4], match[4])
        modules = (theirs,) if isinstance(theirs, str) else theirs
        for module, rows in zip(modules, tensor.chunk(len(modules)), strict=False):
            tensors[f"model.{match[1]}.{layer}{module}.{kind}"] = rows
    return without_key_biases(name, tensors)


def without_key_biases(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whisper's keys have no bias; CTranslate2 stores zeros for it."""
    biases = [key for key in tensors if key.endswith(".k_proj.bias")]
    if given := [key for key in biases if tensors[key].count_nonzero()]:
        raise ValueError(f"{name} has biases of keys, which no Whisper has: {', '.join(given)}")
    return {key: tensor for key, tensor in tensors.items() if key not in biases}


def read_config(name: str, scalars: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = {
        "vocab_size": ("model.decoder.embed_tokens.weight", 0),
        "d_model": ("model.decoder.embed_tokens.weight", 1),
        "max_source_positions": ("model.encoder.embed_positions.weight", 0),
        "max_target_positions": ("model.decoder.embed_positions.weight", 0),
        "num_mel_bins": ("model.encoder.conv1.weight", 1),
        "encoder_ffn_dim": ("model.encoder.layers.0.fc1.weight", 0),
        "decoder_ffn_dim": ("model.decoder.layers.0.fc1.weight", 0),
    }
    missing = [key for key, dim in sizes.values() if key not in tensors or tensors[key].dim() <= dim]
    missing += [f"{side}/num_heads" for side in ("encoder", "decoder") if f"{side}/num_heads" not in scalars]
    if missing:
        raise ValueError(f"{name} has no {', '.join(dict.fromkeys(missing))} of the shape of a Whisper's")
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        **{ours: tensors[key].shape[dim] for ours, (key, dim) in sizes.items()},
        "encoder_layers": count_layers(tensors, "encoder"),
        "decoder_layers": count_layers(tensors, "decoder"),
        "encoder_attention_heads": scalars["encoder/num_heads"],
        "decoder_attention_heads": scalars["decoder/num_heads"],
        "activation_function": "gelu",
        "scale_embedding": False,
    }


def read_start_token(vocabulary: Path) -> dict[str, int]:
    """`decoder_start_token_id`, where there is a vocabulary: a token on each line, in order."""
    if not vocabulary.is_file():
        return {}
    tokens = vocabulary.read_text(encoding="utf-8", errors="replace").split("\n")
    if START_TOKEN not in tokens:
        raise ValueError(f"{vocabulary} has no {START_TOKEN}")
    return {"decoder_start_token_id": tokens.index(START_TOKEN)}


def count_layers(tensors: Mapping[str, Tensor], side: str) -> int:
    layers = {int(key.split(".")[3]) for key in tensors if key.startswith(f"model.{side}.layers.")}
    return len(layers)
