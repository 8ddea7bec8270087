"""Fused transformer kernels behind PyTorch autograd, and the models built on them."""

from fusedformer import nn
from fusedformer.kernels.attention import attention, attention_backward
from fusedformer.kernels.attention_adapters import scaled_dot_product_attention
from fusedformer.kernels.explain import explain
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.layer_norm import layer_norm
from fusedformer.kernels.softmax import softmax
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.vision_transformer import VisionTransformer

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "TransformerConfig",
    "VisionTransformer",
    "__version__",
    "attention",
    "attention_backward",
    "explain",
    "gelu",
    "layer_norm",
    "nn",
    "scaled_dot_product_attention",
    "softmax",
]
