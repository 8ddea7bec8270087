"""Layers for `kernelize` of Hugging Face's package `kernels`: it gives a module the `forward` of a class from here.

Such a class has no state of its own: `self` is the module that is replaced, and its parameters are used. `kernels`
reads them from a folder, a local repository, that `write_repository` makes:

    FOLDER/build/torch-universal/__init__.py      imports these layers from the installed package
    FOLDER/build/torch-universal/metadata.json    what `kernels` wants to know: a name, a license

`kernels` is imported by `kernel_mapping` alone. It is not the folder `kernels` at the top of a clone, which shadows it
where Python is started there with `-m`.
Source: huggingface/kernels, "Kernel requirements" and "Layers".
"""

import importlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fusedformer import nn as fused
from fusedformer.drop_in import calls
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.rms_norm import rms_norm

VARIANT = "torch-universal"
DEVICES = ("cuda", "cpu")


class RMSNorm(nn.Module):
    """RMSNorm of Llama, T5 and others: `weight` (D,), and `variance_epsilon` or `eps`."""

    has_backward = True
    can_torch_compile = True
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension of (..., D)."""
        calls.served(self, "rms_norm", hidden_states)
        eps: Any = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        return rms_norm(hidden_states, self.weight, eps=eps)


class LayerNorm(nn.Module):
    """`torch.nn.LayerNorm`: `normalized_shape`, `weight` and `bias` or None, `eps`."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the trailing `normalized_shape` dimensions of `input`."""
        calls.served(self, "layer_norm", input)
        return fused.LayerNorm.forward(self, input)  # type: ignore[arg-type]  # `self` is a torch.nn.LayerNorm


class GeLU(nn.Module):
    """GELU by the error function."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        """GELU of every element."""
        calls.served(self, "gelu", input)
        return gelu(input)


class GeluTanh(nn.Module):
    """GELU by the approximation with tanh; also what transformers calls NewGELU and FastGELU."""

    has_backward = True
    can_torch_compile = True

    def forward(self, input: Tensor) -> Tensor:
        """GELU of every element."""
        calls.served(self, "gelu", input)
        return gelu(input, "tanh")


# By the names that classes of transformers carry for `kernels`.
LAYERS = {"RMSNorm": "RMSNorm", "LayerNorm": "LayerNorm", "GeLU": "GeLU"}
LAYERS |= dict.fromkeys(("GeluTanh", "NewGELU", "FastGELU"), "GeluTanh")


def write_repository(folder: str | Path) -> Path:
    """Write a local repository of these layers for Hugging Face's `kernels`, and return its path.

        write_repository("hub/fusedformer")
        LocalLayerRepository(Path("hub/fusedformer"), layer_name="RMSNorm")

    Args:
        folder: where; made if it is not there. What an earlier call wrote there is replaced.

    Returns:
        `folder`, absolute.

    Raises:
        ValueError: `folder` is a file.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"write_repository: {folder} is a file, expected a folder or nothing")
    variant = folder / "build" / VARIANT
    variant.mkdir(parents=True, exist_ok=True)
    metadata = {
        "id": "fusedformer_hub_layers",  # what `kernels` imports it as, which must not be this package's name
        "name": "fusedformer",
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    (variant / "__init__.py").write_text(
        f'"""Layers of fusedformer."""\n\nfrom {__package__} import hub_layers as layers\n\n__all__ = ["layers"]\n',
        encoding="utf-8",
    )
    return folder


def kernel_mapping(folder: str | Path) -> dict[str, dict[str, Any]]:
    """All of these layers for `kernels.use_kernel_mapping`, from a repository written into `folder`.

        with use_kernel_mapping(kernel_mapping("hub/fusedformer")):
            kernelize(model, mode=Mode.TRAINING)

    Args:
        folder: as of `write_repository`.

    Returns:
        The layer for each name that a class may carry and each device.

    Raises:
        ImportError: `kernels` is not installed, or a folder of that name shadows it.
        ValueError: as `write_repository`.
    """
    try:
        repository = importlib.import_module("kernels").LocalLayerRepository
    except (ImportError, AttributeError) as error:
        raise ImportError(f"kernel_mapping: needs Hugging Face's kernels, pip install kernels: {error}") from error
    path = write_repository(folder)
    return {name: {device: repository(path, layer_name=layer) for device in DEVICES} for name, layer in LAYERS.items()}
