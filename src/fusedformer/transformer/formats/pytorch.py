"""What `torch.save` wrote: a pickle, which could run any code, and is therefore read as weights only."""

from pathlib import Path

import torch
from torch import Tensor


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds a state dict, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but named tensors, or is truncated or corrupt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever corrupt bytes lead the unpickler to
        raise ValueError(f"{path} cannot be read as weights only: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no named tensors, but a {type(state).__name__}")
    other = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"{path} holds values that are no named tensors: {', '.join(map(repr, other))}")
    return dict(state)
