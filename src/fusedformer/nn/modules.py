"""Norms, softmax, activations and the loss.

GEGLU and SwiGLU have none there: they take the place of the activation in a network of two layers, whose first layer is
twice as wide, and have no parameters.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fusedformer.kernels.cross_entropy import REDUCTIONS, cross_entropy
from fusedformer.kernels.gelu import check_approximate, gelu
from fusedformer.kernels.glu import geglu, swiglu
from fusedformer.kernels.layer_norm import layer_norm
from fusedformer.kernels.log_softmax import log_softmax
from fusedformer.kernels.rms_norm import rms_norm
from fusedformer.kernels.softmax import softmax


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` through `fusedformer.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the trailing `normalized_shape` dimensions of `input`, (*, *normalized_shape)."""
        rows, (weight, bias) = _in_rows(self, input, self.weight, self.bias)
        return layer_norm(rows, weight, bias, eps=self.eps).reshape(input.shape)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` through `fusedformer.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the trailing `normalized_shape` dimensions of `x`, (*, *normalized_shape)."""
        rows, (weight,) = _in_rows(self, x, self.weight)
        return rms_norm(rows, weight, eps=self.eps).reshape(x.shape)


def _in_rows(
    norm: LayerNorm | RMSNorm, x: Tensor, *parameters: Tensor | None
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """x and the parameters with the normalised dimensions in one. Raises ValueError where x has others."""
    shape = norm.normalized_shape
    if x.shape[-len(shape) :] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{type(norm).__name__}: input has shape {tuple(x.shape)}, expected (*, {expected})")
    if len(shape) == 1:
        return x, parameters
    return x.flatten(-len(shape)), [None if parameter is None else parameter.flatten() for parameter in parameters]


class Softmax(nn.Softmax):
    """`torch.nn.Softmax` through `fusedformer.softmax`; rows of -inf alone give zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """Softmax of `input` along `self.dim`; None means what it means to PyTorch, 0 for 1-D and 3-D and else 1."""
        return softmax(input, _implicit_dim(input) if self.dim is None else self.dim)


class LogSoftmax(nn.LogSoftmax):
    """`torch.nn.LogSoftmax` through `fusedformer.log_softmax`; rows of -inf alone give -inf."""

    def forward(self, input: Tensor) -> Tensor:
        """Logarithm of the softmax of `input` along `self.dim`; None as in Softmax."""
        return log_softmax(input, _implicit_dim(input) if self.dim is None else self.dim)


class GELU(nn.GELU):
    """`torch.nn.GELU` through `fusedformer.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        """GELU of every element of `input`."""
        return gelu(input, self.approximate)


class GEGLU(nn.Module):
    """`fusedformer.geglu` of the halves of the last dimension."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        check_approximate("GEGLU", approximate)
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """(..., 2N) -> (..., N): GELU of the first half times the second."""
        return geglu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        """As of `torch.nn.GELU`."""
        return f"approximate={self.approximate!r}"


class SwiGLU(nn.Module):
    """`fusedformer.swiglu` of the halves of the last dimension."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., 2N) -> (..., N): SiLU of the first half times the second."""
        return swiglu(input)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` of class indices through `fusedformer.cross_entropy`, with its `z_loss`.

    Where there are more than two dimensions, classes are the second one, as in `torch.nn`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
    ) -> None:
        if size_average is not None or reduce is not None:
            given = f"size_average is {size_average}, reduce is {reduce}"
            raise ValueError(f"CrossEntropyLoss: {given}: long deprecated, use reduction, one of {REDUCTIONS}")
        super().__init__(weight, None, ignore_index, None, reduction, label_smoothing)
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input`, (C,), (N, C) or (N, C, d1, ...), and of classes `target`, (), (N,) or (N, d1, ...)."""
        return class_loss(self, input, target, self.z_loss)


def class_loss(module: nn.CrossEntropyLoss, input: Tensor, target: Tensor, z_loss: float = 0.0) -> Tensor:
    """`cross_entropy` with the settings of `module`, whose classes are the second dimension where there are several."""
    return cross_entropy(
        input.movedim(1, -1) if input.dim() > 1 else input,
        target,
        weight=module.weight,
        ignore_index=module.ignore_index,
        label_smoothing=module.label_smoothing,
        z_loss=z_loss,
        reduction=module.reduction,
    )


def _implicit_dim(input: Tensor) -> int:
    return 0 if input.dim() in (0, 1, 3) else 1
