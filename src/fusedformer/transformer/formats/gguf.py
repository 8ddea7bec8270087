"""GGUF, the format of llama.cpp: metadata and the list of tensors, then the tensors themselves, quantised in blocks.

The header is parsed here: the `gguf` package's reader needs 4.6 s for the 49,152 tokens of SmolLM2 where this needs
0.2 s, and takes text that is cut off. What the blocks mean, the package says.
Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedformer.transformer.formats.binary import Cursor, map_file

try:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize
except ImportError as error:
    raise ImportError("weights in GGUF need the gguf package: pip install 'fusedformer[models]'") from error

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
# The type of a metadata value: its code in the `struct` module.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is, and how."""

    name: str
    shape: tuple[int, ...]  # outermost first, as in PyTorch
    kind: GGMLQuantizationType
    start: int  # in the file
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """All of a file but the tensors themselves."""

    metadata: dict[str, Any]
    tensors: list[TensorInfo]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file: text, numbers, and lists of these.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file, or is truncated or corrupt.
    """
    return read_header(path, map_file(path)).metadata


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata of a file, and its tensors under its own names, dequantised to float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file, is truncated or corrupt, or quantised in a way that `gguf` does not know.
    """
    data = map_file(path)
    header = read_header(path, data)
    check_extents(path, header.tensors, len(data))
    return header.metadata, {info.name: decode(path, info, data) for info in header.tensors}


def read_header(path: Path, data: memoryview) -> Header:
    cursor = Cursor(data, str(path))
    magic = bytes(cursor.take(len(MAGIC)))
    if magic != MAGIC:
        raise ValueError(f"{path} is no GGUF file: it begins with {magic!r}")
    version = cursor.integer("I")
    if version not in VERSIONS:
        raise ValueError(f"{path} is GGUF of version {version}: versions {VERSIONS} are read, little-endian")
    n_tensors, n_values = cursor.integer("Q"), cursor.integer("Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text("Q")
        if key in metadata:
            raise ValueError(f"{path} is corrupt: it has {key} twice")
        metadata[key] = read_value(cursor, cursor.integer("I"))
    infos = [read_info(cursor) for _ in range(n_tensors)]
    return Header(metadata, placed(path, infos, cursor.position, metadata.get("general.alignment", DEFAULT_ALIGNMENT)))


def read_value(cursor: Cursor, kind: int) -> Any:
    if kind == STRING:
        return cursor.text("Q")
    if kind == ARRAY:
        return read_array(cursor, cursor.integer("I"), cursor.integer("Q"))
    if kind not in NUMBERS:
        raise ValueError(f"{cursor.name} is corrupt: there is no metadata type {kind}")
    return cursor.number(NUMBERS[kind])


def read_array(cursor: Cursor, kind: int, length: int) -> list[Any]:
    if kind == STRING:
        return cursor.texts(length, "Q")
    if kind not in NUMBERS:
        raise ValueError(f"{cursor.name} has an array of metadata type {kind}: arrays of numbers and text are read")
    dtype = np.dtype("<" + NUMBERS[kind])
    return np.frombuffer(cursor.take(length * dtype.itemsize), dtype).tolist()


def read_info(cursor: Cursor) -> TensorInfo:
    """The next tensor's, `start` still counted from where the tensors begin."""
    name = cursor.text("Q")
    n_dims = cursor.integer("I")
    if n_dims > MAX_DIMS:
        raise ValueError(f"{cursor.name} is corrupt: {name} has {n_dims} dimensions, and {MAX_DIMS} is the most")
    shape = tuple(cursor.integer("Q") for _ in range(n_dims))[::-1]
    number, start = cursor.integer("I"), cursor.integer("Q")
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ValueError(f"{cursor.name}: {name} has tensor type {number}, which is unknown") from None
    if not shape or prod(shape) == 0 or shape[-1] % block:
        raise ValueError(f"{cursor.name} is corrupt: {name} of shape {shape} is no rows of whole blocks of {block}")
    return TensorInfo(name, shape, kind, start, prod(shape) // block * block_bytes)


def placed(path: Path, infos: list[TensorInfo], header_end: int, alignment: object) -> list[TensorInfo]:
    """The infos with `start` counted from the file's."""
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{path} is corrupt: general.alignment is {alignment!r}")
    begin = -(-header_end // alignment) * alignment
    return [TensorInfo(info.name, info.shape, info.kind, begin + info.start, info.n_bytes) for info in infos]


def check_extents(path: Path, infos: list[TensorInfo], size: int) -> None:
    """Raise ValueError unless every tensor is inside the file, with bytes and a name of its own."""
    if len({info.name for info in infos}) < len(infos):
        raise ValueError(f"{path} is corrupt: two tensors have one name")
    free = 0
    for info in sorted(infos, key=lambda info: info.start):
        end = info.start + info.n_bytes
        if info.start < free:
            raise ValueError(f"{path} is corrupt: {info.name} at {info.start} lies over the tensor before it")
        if end > size:
            raise ValueError(f"{path} is truncated or corrupt: {info.name} ends at {end} of {size}")
        free = end


def decode(path: Path, info: TensorInfo, data: memoryview) -> Tensor:
    block, block_bytes = GGML_QUANT_SIZES[info.kind]
    stored = np.frombuffer(data[info.start : info.start + info.n_bytes], np.uint8)
    rows = stored.reshape(*info.shape[:-1], info.shape[-1] // block * block_bytes)
    try:
        # A corrupt scale may be infinite: values are the file's business.
        with np.errstate(all="ignore"):
            values = dequantize(rows, info.kind)
    except NotImplementedError as error:
        raise ValueError(f"{path}: {info.name} is quantised as {info.kind.name}: {error}") from error
    return torch.from_numpy(np.array(values, dtype=np.float32, copy=info.kind == GGMLQuantizationType.F32))
