"""Our checkpoints: one safetensors file that holds the weights and, as JSON in its metadata, the configuration.

safetensors cannot carry code, so a checkpoint from a stranger is safe to open.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusedformer.files import atomic_write
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.formats import safetensors

try:
    from safetensors.torch import save_file
except ImportError as error:
    raise ImportError("checkpoints are safetensors files: pip install 'fusedformer[models]'") from error

METADATA_KEY = "fusedformer"
FORMAT = 1  # of the header; a checkpoint with another was written by another version of the package


def save(
    path: str | os.PathLike[str], architecture: str, config: TransformerConfig, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a checkpoint, whole or not at all."""
    header = {"format": FORMAT, "architecture": architecture, "config": dataclasses.asdict(config)}
    with atomic_write(path) as temporary:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, {METADATA_KEY: json.dumps(header)})


def read(path: str | os.PathLike[str], architecture: str) -> tuple[TransformerConfig, dict[str, torch.Tensor]]:
    """Read the configuration and the tensors of a checkpoint of this architecture.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, one of another format, or one of another architecture.
    """
    metadata, tensors = safetensors.read(Path(path))
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by save(): its metadata has no {METADATA_KEY!r}")
    found, fields = parse_header(path, metadata[METADATA_KEY])
    if found != architecture:
        raise ValueError(f"{path} holds a model of class {found}, not {architecture}")
    try:
        return TransformerConfig.from_fields(fields), tensors
    except ValueError as error:
        raise ValueError(f"{path} has a configuration that does not fit: {error}") from error


def parse_header(path: str | os.PathLike[str], text: str) -> tuple[str, Any]:
    """Architecture and configuration fields in the metadata of a checkpoint."""
    try:
        header = json.loads(text)
        version = header["format"]
        if version != FORMAT:
            raise ValueError(f"{path} has format {version!r}, and this version of fusedformer reads {FORMAT}")
        return header["architecture"], header["config"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has malformed metadata: {text!r}") from error
