"""What the four architectures share besides their parts: a configuration, initial weights, a checkpoint on disk.

Dimensions: B batch, S sequence, E d_model, V vocabulary.
"""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fusedformer.transformer.attention import MultiHeadAttention
from fusedformer.transformer.blocks import FeedForward, Stack
from fusedformer.transformer.checks import FLOATS, check_dtype
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.embeddings import TokenEmbedding

M = TypeVar("M", bound="Model")  # typing.Self is Python 3.11's


class Model(nn.Module):
    """A transformer with a `config`, which can be saved and loaded as one file."""

    needs: ClassVar[tuple[str, ...]] = ()  # the optional sizes of the configuration that this architecture has

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if not isinstance(config, TransformerConfig):
            raise ValueError(f"config must be a TransformerConfig, such as a preset of it, got {config!r}")
        config.require(type(self).__name__, self.needs)
        self.config = config

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and configuration to `path` as a safetensors file, whole or not at all.

        Raises:
            FileNotFoundError: if the folder of `path` does not exist.
            ValueError: if `path` is itself a folder.
        """
        from fusedformer.transformer import checkpoint  # safetensors is an extra

        checkpoint.save(path, type(self).__name__, self.config, self.state_dict())

    @classmethod
    def load(
        cls: type[M],
        path: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> M:
        """Read a model that `save` wrote, ready to train or evaluate.

        Args:
            path: the file.
            device: where the weights go.
            dtype: what they are converted to; None: they keep the dtypes they were saved in.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no checkpoint of this architecture, a tensor is missing, extra or mis-shaped, or
                `dtype` is none that models compute in.
        """
        from fusedformer.transformer import checkpoint  # safetensors is an extra

        check_dtype(dtype)
        return cls.from_state_dict(*checkpoint.read(path, cls.__name__)).to(device=device, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls: type[M],
        path_or_package: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> M:
        """Load a published model of this architecture: arguments and errors as `fusedformer.from_pretrained`.

        Raises:
            ValueError: also if it is of another architecture.
        """
        from fusedformer.transformer import pretrained  # which imports the architectures

        model = pretrained.from_pretrained(path_or_package, device=device, dtype=dtype)
        if not isinstance(model, cls):
            raise ValueError(f"{path_or_package} holds a model of class {type(model).__name__}, not {cls.__name__}")
        return model

    @classmethod
    def skeleton(cls: type[M], config: TransformerConfig) -> M:
        """The model without weights: names and shapes alone, on the meta device."""
        with torch.device("meta"), NoInitialWeights():
            return cls(config)

    @classmethod
    def from_state_dict(cls: type[M], config: TransformerConfig, state_dict: Mapping[str, Tensor]) -> M:
        """Build the model around existing weights, which become its parameters: nothing is copied or drawn at random.

        Raises:
            ValueError: if a tensor is missing, extra, mis-shaped or not floating point; the message lists every one.
        """
        model = cls.skeleton(config)
        check_weights({name: tensor.shape for name, tensor in model.state_dict().items()}, state_dict)
        model.load_state_dict(state_dict, assign=True)
        return model


class NoInitialWeights(TorchFunctionMode):
    """Leaves out what `torch.nn` draws for new layers: even where there is no memory to draw into, it takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class TextModel(Model):
    """A model that reads tokens, through a table with one vector for each."""

    needs = ("vocab_size", "max_seq_len")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.token_embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)


class LanguageModel(TextModel):
    """A model that writes tokens too: by a head, or tied, by the table (Press and Wolf 2017, arXiv:1608.05859)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def unembed(self, x_BSE: Tensor) -> Tensor:
        """Logits (B, S, V)."""
        if self.config.scale_tied_head:
            x_BSE = x_BSE * self.config.d_model**-0.5
        return F.linear(x_BSE, self.token_embedding.weight if self.head is None else self.head.weight)


def check_weights(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    """Raise one ValueError that lists every tensor that is missing, extra, mis-shaped or not floating point."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"extra {name}" for name in found if name not in expected]
    for name, shape in expected.items():
        if name in found and found[name].shape != shape:
            problems.append(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(shape)}")
        if name in found and found[name].dtype not in FLOATS:
            problems.append(f"{name} is {found[name].dtype}, expected one of {', '.join(map(str, FLOATS))}")
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(problems))


@torch.no_grad()
def initialise(model: Model) -> None:
    """Draw initial weights: matrices and embeddings from Normal(0, 0.02), biases 0.

    The 0.02 is BERT's (Devlin et al. 2019) and GPT-2's. In pre-norm stacks the projections back into the residual
    stream are divided by the square root of the number of residual sublayers (Radford et al. 2019, section 2.3). Layer
    scales start at their value of the configuration, norms as the identity.
    """
    if next(model.parameters()).is_meta:
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
            module.weight.normal_(std=0.02)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            module.bias.zero_()
    for name, token in model.named_parameters(recurse=False):  # class token and registers of a vision transformer
        if name == "registers":  # the class token starts at 0; registers that did would stay equal to each other
            token.normal_(std=0.02)
    if model.config.norm_position == "pre":
        for stack in model.modules():
            if isinstance(stack, Stack):
                scale_residual_projections(stack)


def scale_residual_projections(stack: Stack) -> None:
    projections = [module.out for module in stack.modules() if isinstance(module, MultiHeadAttention)]
    projections += [module.down for module in stack.modules() if isinstance(module, FeedForward)]
    for projection in projections:
        projection.weight /= len(projections) ** 0.5
