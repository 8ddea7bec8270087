"""Drop-in modules: the constructor arguments and the `state_dict` keys of their namesakes in `torch.nn`."""

from torch import Tensor, nn

from fusedformer.kernels.cross_entropy import REDUCTIONS, cross_entropy
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.layer_norm import layer_norm
from fusedformer.kernels.log_softmax import log_softmax
from fusedformer.kernels.softmax import softmax


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` through `fusedformer.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the trailing `normalized_shape` dimensions of `input`, (*, *normalized_shape)."""
        if input.shape[-len(self.normalized_shape) :] != self.normalized_shape:
            expected = ", ".join(map(str, self.normalized_shape))
            raise ValueError(f"LayerNorm: input has shape {tuple(input.shape)}, expected (*, {expected})")
        if len(self.normalized_shape) == 1:
            return layer_norm(input, self.weight, self.bias, eps=self.eps)
        weight = None if self.weight is None else self.weight.flatten()
        bias = None if self.bias is None else self.bias.flatten()
        rows = input.flatten(-len(self.normalized_shape))
        return layer_norm(rows, weight, bias, eps=self.eps).reshape(input.shape)


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
        return cross_entropy(
            input.movedim(1, -1) if input.dim() > 1 else input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            reduction=self.reduction,
        )


def _implicit_dim(input: Tensor) -> int:
    return 0 if input.dim() in (0, 1, 3) else 1
