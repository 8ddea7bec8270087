"""A folder as Hugging Face publishes models: config.json, and the weights in one file or in several with an index.

sentence-transformers keeps beside them how a sentence becomes one vector.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fusedformer.transformer.formats import pytorch

CONFIG = "config.json"
POOLING = "1_Pooling/config.json"
POOLING_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "class"}
INDEX = ".index.json"  # behind either's name: which shard holds which tensor


def read(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of config.json, and the tensors of the file of weights, or index of such, beside it.

    A folder of sentence-transformers adds the field `pooling`, "class" or "mean".

    Raises:
        FileNotFoundError: if one of the files is not there.
        ValueError: if one is truncated or corrupt, or the index and the shards differ.
    """
    config = read_json(weights.with_name(CONFIG)) | read_pooling(weights.parent / POOLING)
    name = weights.name.removesuffix(INDEX)
    read_file = pytorch.read if Path(name).suffix == ".bin" else read_safetensors
    return config, read_file(weights) if name == weights.name else read_shards(weights, read_file)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from fusedformer.transformer.formats import safetensors  # an extra

    return safetensors.read(path)[1]


def read_shards(index: Path, read_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that an index names, each from the shard it names."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index} has no weight_map of tensors to files")
    # A shard is a file of this folder: an index from a stranger names no other.
    if bad := sorted({shard for shard in shards.values() if Path(shard).name != shard}):
        raise ValueError(f"{index} names files outside its folder: {', '.join(bad)}")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        found, named = read_file(index.with_name(shard)), {name for name in shards if shards[name] == shard}
        problems = [f"missing {name}" for name in sorted(named - found.keys())]
        problems += [f"extra {name}" for name in sorted(found.keys() - named)]
        if problems:
            raise ValueError(f"{index.with_name(shard)} is not what {index.name} says: {'; '.join(problems)}")
        tensors |= found
    return tensors


def read_pooling(path: Path) -> dict[str, str]:
    """The field `pooling`, where there is such a file."""
    if not path.is_file():
        return {}
    modes = [mode for mode, on in read_json(path).items() if mode.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise ValueError(f"{path} asks for {' and '.join(modes)}: one of {', '.join(POOLING_MODES)} is computed")
    return {"pooling": POOLING_MODES[modes[0]]}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, or no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value
