"""What is profiled: models by name, each at any context length, or whatever a function in a file builds.

The weights are bfloat16, the batch is one sequence. Where a model has a table of positions, it has as many as the
context is long.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.model import Model
from fusedformer.transformer.vision_transformer import VisionTransformer

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Built:
    """A model and, where it is not one of ours, what it is called with."""

    model: nn.Module
    inputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model of any context length.

    Attributes:
        name: what the user calls it.
        build: the model for a context, with so many blocks (None: all), on PyTorch's current device.
        n_layers: blocks, all alike; None where their number is not ours to choose.
        length: the context nearest to a wanted one that the model can have.
        unit: what a context is counted in.
    """

    name: str
    build: Callable[[int, int | None], Built]
    n_layers: int | None
    length: Callable[[int], int] = lambda context: context
    unit: str = "tokens"

    def shorter(self, context: int) -> int:
        """The longest context that the model can have, up to this one."""
        found = self.length(context)
        return found if found <= context else self.length(context - (found - context))


def build_on(device: torch.device, subject: Subject, context: int, n_layers: int | None) -> Built:
    """The model on a device, its weights in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with device:
            return subject.build(context, n_layers)
    finally:
        torch.set_default_dtype(before)


def find_subject(text: str) -> Subject:
    """The subject of `--model`: a name, or FILE.py:FUNCTION.

    FUNCTION(context) gives a model of this package, or any nn.Module and the tuple of tensors that it is called with.

    Raises:
        ValueError: there is no such model, file or function.
    """
    if text in SUBJECTS:
        return SUBJECTS[text]()
    path, colon, function = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(f"no model {text!r}: choose from {', '.join(SUBJECTS)}, or name a FILE.py:FUNCTION")
    return _from_file(Path(path), function)


def _from_file(path: Path, function: str) -> Subject:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{path} has no function {function!r}")

    def build(context: int, n_layers: int | None) -> Built:
        return _checked(f"{path}:{function}", found(context))

    return Subject(f"{path.name}:{function}", build, n_layers=None)


def _checked(name: str, built: Any) -> Built:
    if isinstance(built, Model):
        return Built(built)
    model, inputs = built if isinstance(built, Sequence) and len(built) == 2 else (None, None)
    if not isinstance(model, nn.Module) or not isinstance(inputs, tuple) or not all(map(torch.is_tensor, inputs)):
        raise ValueError(
            f"{name} gave {type(built).__name__}: expected a model of fusedformer, or (nn.Module, tensors)"
        )
    return Built(model, inputs)


def _decoder(name: str, preset: str) -> Subject:
    config = TransformerConfig.preset(preset)

    def build(context: int, n_layers: int | None) -> Built:
        depth = n_layers or config.n_layers
        return Built(Decoder(TransformerConfig.preset(preset, max_seq_len=context, n_layers=depth)))

    return Subject(name, build, config.n_layers)


def _vision_transformer(name: str, preset: str) -> Subject:
    config = TransformerConfig.preset(preset)

    def build(context: int, n_layers: int | None) -> Built:
        size = math.isqrt(context) * config.patch_size
        depth = n_layers or config.n_layers
        return Built(VisionTransformer(TransformerConfig.preset(preset, image_size=size, n_layers=depth)))

    return Subject(name, build, config.n_layers, length=lambda context: round(context**0.5) ** 2, unit="patches")


def _encoder_decoder(name: str, preset: str) -> Subject:
    """The context is the source; the target keeps the length that the preset has."""
    config = TransformerConfig.preset(preset)

    def build(context: int, n_layers: int | None) -> Built:
        depth = n_layers or config.n_layers
        return Built(EncoderDecoder(TransformerConfig.preset(preset, max_source_len=context, n_layers=depth)))

    return Subject(name, build, config.n_layers, unit="source positions")


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "gpt2": lambda: _decoder("gpt2", "gpt2"),
    "llama-8b": lambda: _decoder("llama-8b", "llama-3-8b"),
    "vit-l": lambda: _vision_transformer("vit-l", "vit-l/16"),
    "whisper": lambda: _encoder_decoder("whisper", "whisper-base"),
}
