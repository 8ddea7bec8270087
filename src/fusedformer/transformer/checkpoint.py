"""Our checkpoints: one safetensors file that holds the weights and, as JSON in its metadata, the configuration.

safetensors cannot carry code, so a checkpoint from a stranger is safe to open.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from fusedformer.transformer.config import TransformerConfig

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
except ImportError as error:
    raise ImportError("checkpoints are safetensors files: pip install 'fusedformer[models]'") from error

METADATA_KEY = "fusedformer"


def save(
    path: str | os.PathLike[str], architecture: str, config: TransformerConfig, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a checkpoint: a temporary file beside `path` takes its name once it is complete and on the disk."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path}: there is no folder {path.parent}")
    header = json.dumps({"architecture": architecture, "config": dataclasses.asdict(config)})
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, {METADATA_KEY: header})
        os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(handle)


def read(path: str | os.PathLike[str], architecture: str) -> tuple[TransformerConfig, dict[str, torch.Tensor]]:
    """Read the configuration and the tensors of a checkpoint of this architecture.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, or one of another architecture.
    """
    metadata, tensors = read_safetensors(Path(path))
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by save(): its metadata has no {METADATA_KEY!r}")
    header = json.loads(metadata[METADATA_KEY])
    if header["architecture"] != architecture:
        raise ValueError(f"{path} holds a model of class {header['architecture']}, not {architecture}")
    return TransformerConfig.from_fields(header["config"]), tensors


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file, on the CPU."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
