"""What the four architectures share besides their parts: a configuration, initial weights, a checkpoint on disk."""

import os
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import Self

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.parts import FeedForward, MultiHeadAttention, Stack


class Model(nn.Module):
    """A transformer with a `config`, which can be saved and loaded as one file."""

    needs: ClassVar[tuple[str, ...]] = ()  # the optional sizes of the configuration that this architecture has

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        config.require(type(self).__name__, self.needs)
        self.config = config

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and configuration to `path` as a safetensors file, whole or not at all.

        Raises:
            FileNotFoundError: if the folder of `path` does not exist.
        """
        from fusedformer.transformer import checkpoint  # safetensors is an extra

        checkpoint.save(path, type(self).__name__, self.config, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model that `save` wrote: on the CPU, in the dtypes it was saved in, ready to train or evaluate.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no checkpoint of this architecture, or a tensor is missing, extra or mis-shaped.
        """
        from fusedformer.transformer import checkpoint  # safetensors is an extra

        config, tensors = checkpoint.read(path, cls.__name__)
        return cls.from_tensors(config, tensors)

    @classmethod
    def skeleton(cls, config: TransformerConfig) -> Self:
        """The model with shapes but no weights, on the meta device: nothing is allocated, no random number drawn."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def from_tensors(cls, config: TransformerConfig, tensors: dict[str, torch.Tensor]) -> Self:
        """Build the model around existing weights, which become its parameters without a copy.

        Raises:
            ValueError: if a tensor is missing, extra or mis-shaped; the message lists every one.
        """
        model = cls.skeleton(config)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        check_tensors(expected, {name: tensor.shape for name, tensor in tensors.items()})
        model.load_state_dict(tensors, assign=True)
        return model


def check_tensors(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    """Raise one ValueError that lists every tensor that is missing, extra or of another shape than expected."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"extra {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(problems))


@torch.no_grad()
def initialise(model: Model) -> None:
    """Draw initial weights: matrices and embeddings from Normal(0, 0.02), biases 0.

    The 0.02 is BERT's (Devlin et al. 2019) and GPT-2's. In pre-norm stacks the projections back into the residual
    stream are divided by the square root of the number of residual sublayers (Radford et al. 2019, section 2.3).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    if model.config.norm_position == "pre":
        for stack in model.modules():
            if isinstance(stack, Stack):
                scale_residual_projections(stack)


def scale_residual_projections(stack: Stack) -> None:
    projections = [module.out for module in stack.modules() if isinstance(module, MultiHeadAttention)]
    projections += [module.down for module in stack.modules() if isinstance(module, FeedForward)]
    for projection in projections:
        projection.weight /= len(projections) ** 0.5
