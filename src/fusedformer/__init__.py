"""Fused transformer kernels behind PyTorch autograd, and the models built on them."""

from fusedformer import nn
from fusedformer.drop_in.patch import patch, unpatch
from fusedformer.drop_in.report import report
from fusedformer.drop_in.torch_hook import register_torch, unregister_torch
from fusedformer.drop_in.transformers_hook import register_transformers
from fusedformer.kernels.add_norm import add_layer_norm, add_rms_norm
from fusedformer.kernels.attention.decode.op import flash_attn_with_kvcache
from fusedformer.kernels.attention.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from fusedformer.kernels.attention.fp8.op import quantize_fp8
from fusedformer.kernels.attention.op import attention, attention_backward
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention
from fusedformer.kernels.bias_activation import bias_gelu, bias_relu
from fusedformer.kernels.cross_entropy import cross_entropy
from fusedformer.kernels.explain import explain
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.glu import geglu, swiglu
from fusedformer.kernels.layer_norm import layer_norm
from fusedformer.kernels.log_softmax import log_softmax
from fusedformer.kernels.rms_norm import rms_norm
from fusedformer.kernels.softmax import softmax
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.markov import MarkovModel
from fusedformer.transformer.pretrained import from_pretrained
from fusedformer.transformer.recording import record_attention
from fusedformer.transformer.vision_transformer import VisionTransformer
from fusedformer.transformer.word_vectors import WordVectors

__version__ = "0.1.0"

__all__ = [
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "MarkovModel",
    "TransformerConfig",
    "VisionTransformer",
    "WordVectors",
    "__version__",
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "attention_backward",
    "bias_gelu",
    "bias_relu",
    "cross_entropy",
    "explain",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "from_pretrained",
    "geglu",
    "gelu",
    "layer_norm",
    "log_softmax",
    "nn",
    "patch",
    "quantize_fp8",
    "record_attention",
    "register_torch",
    "register_transformers",
    "report",
    "rms_norm",
    "scaled_dot_product_attention",
    "softmax",
    "swiglu",
    "unpatch",
    "unregister_torch",
]
