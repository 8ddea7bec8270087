"""Drop-in modules: the constructor arguments and the `state_dict` keys of their namesakes in `torch.nn`."""

from fusedformer.nn.modules import (
    GEGLU,
    GELU,
    CrossEntropyLoss,
    LayerNorm,
    LogSoftmax,
    RMSNorm,
    Softmax,
    SwiGLU,
)
from fusedformer.nn.multihead_attention import MultiheadAttention
from fusedformer.nn.transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "GEGLU",
    "GELU",
    "CrossEntropyLoss",
    "LayerNorm",
    "LogSoftmax",
    "MultiheadAttention",
    "RMSNorm",
    "Softmax",
    "SwiGLU",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
]
