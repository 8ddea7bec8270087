"""A folder as Hugging Face publishes models: config.json, and the weights in one file or in several with an index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fusedformer.transformer.formats import pytorch

CONFIG = "config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # behind either's name: which shard holds which tensor


def read(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of config.json, and the tensors of the file of weights, or index of such, beside it.

    Raises:
        FileNotFoundError: if one of the files is not there.
        ValueError: if one is truncated or corrupt, or the index and the shards differ.
    """
    config = read_json(weights.with_name(CONFIG))
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
