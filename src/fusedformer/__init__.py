"""Fused transformer kernels behind PyTorch autograd, and the models built on them."""

from fusedformer import nn
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.layer_norm import layer_norm
from fusedformer.kernels.softmax import softmax

__version__ = "0.1.0"

__all__ = ["__version__", "gelu", "layer_norm", "nn", "softmax"]
