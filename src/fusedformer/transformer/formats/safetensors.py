"""safetensors: a header of JSON, then the values. It cannot carry code, and its library checks every length.

Source: https://github.com/huggingface/safetensors, its README.
"""

from pathlib import Path

from torch import Tensor

try:
    from safetensors import SafetensorError, safe_open
except ImportError as error:
    raise ImportError("weights in safetensors need the package: pip install 'fusedformer[models]'") from error


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or is truncated or corrupt.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
