"""CTranslate2's model.bin: a list of named variables, one behind the other, and other names for some of them.

    u32 version, str specification, u32 revision, u32 count,
    count times (str name, u8 rank, u32 size for each dimension, u8 dtype, u32 bytes, the values),
    u32 count of aliases, for each (str alias, str name)

where str is u16 length, then text that ends in a zero byte; all little-endian.
Source: CTranslate2's python/ctranslate2/specs/model_spec.py, binary version 6.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusedformer.transformer.formats.binary import Cursor, map_file

VERSION = 6
# The number of a type in the file: how its bytes are read, and what they mean.
DTYPES = {
    0: (np.float32, torch.float32),
    1: (np.int8, torch.int8),
    2: (np.int16, torch.int16),
    3: (np.int32, torch.int32),
    4: (np.float16, torch.float16),
    5: (np.int16, torch.bfloat16),
}


def read_variables(paths: Sequence[Path]) -> tuple[str, dict[str, Tensor]]:
    """The specification's name and the variables of a model.bin, which may be cut into parts, in this order.

    Raises:
        FileNotFoundError: if one of the parts is not there.
        ValueError: if it is no model.bin of version 6, or is truncated or corrupt.
    """
    parts = [map_file(path) for path in paths]
    data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    cursor = Cursor(data, " + ".join(map(str, paths)))
    version = cursor.integer("I")
    if version != VERSION:
        raise ValueError(f"{cursor.name} has binary version {version}: CTranslate2's {VERSION} is read")
    specification = read_text(cursor)
    cursor.integer("I")  # the specification's revision, which a change of names would raise
    variables: dict[str, Tensor] = {}
    for _ in range(cursor.integer("I")):
        add(cursor, variables, read_text(cursor), read_tensor(cursor))
    for _ in range(cursor.integer("I")):
        alias, name = read_text(cursor), read_text(cursor)
        if name not in variables:
            raise ValueError(f"{cursor.name} is corrupt: {alias} is another name for {name}, which is not there")
        add(cursor, variables, alias, variables[name])
    if cursor.position != len(data):
        raise ValueError(f"{cursor.name} is corrupt: it goes on for {len(data) - cursor.position} bytes behind its end")
    return specification, variables


def add(cursor: Cursor, variables: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in variables:
        raise ValueError(f"{cursor.name} is corrupt: it has {name} twice")
    variables[name] = tensor


def read_text(cursor: Cursor) -> str:
    text = cursor.text("H")
    if not text.endswith("\0"):
        raise ValueError(f"{cursor.name} is corrupt: {text!r} does not end in a zero byte")
    return text[:-1]


def read_tensor(cursor: Cursor) -> Tensor:
    shape = [cursor.integer("I") for _ in range(cursor.integer("B"))]
    number, n_bytes = cursor.integer("B"), cursor.integer("I")
    if number not in DTYPES:
        raise ValueError(f"{cursor.name} is corrupt: there is no data type {number}")
    stored, dtype = DTYPES[number]
    if n_bytes != prod(shape) * dtype.itemsize or n_bytes == 0:
        raise ValueError(f"{cursor.name} is corrupt: {n_bytes} bytes for {dtype} of {tuple(shape)}")
    # Names of any length stand between the values, so these need not be aligned: copied, they are.
    values = np.frombuffer(cursor.take(n_bytes), stored).copy()
    return torch.from_numpy(values).view(dtype).reshape(shape)
