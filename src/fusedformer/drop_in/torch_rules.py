"""Rules for the modules of `torch.nn`: known by their forward itself, which subclasses inherit."""

import itertools
from typing import Any

from torch import Tensor, nn

from fusedformer import nn as ours
from fusedformer.drop_in import routing
from fusedformer.drop_in.residual import add_norm
from fusedformer.drop_in.rules import Rule
from fusedformer.kernels.add_norm import add_layer_norm, add_rms_norm
from fusedformer.nn.modules import class_loss
from fusedformer.nn.transformer_layers import decoder_layer, encoder_layer

NORM_EFFECT = "one kernel that reads and writes each element once, backward with the gradients of the parameters"
RESIDUAL_EFFECT = "with the residual before it: s and its norm in one pass, 4 elements moved in place of 5"
ATTENTION_EFFECT = "no matrix of scores in memory, in training too"


def _layer_norm(self: Any, input: Tensor) -> Tensor:
    return ours.LayerNorm.forward(self, routing.autocast("layer_norm", input))


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    return ours.RMSNorm.forward(self, routing.autocast("rms_norm", x))


def _add_layer_norm(norm: Any, branch: Tensor, stream: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    return add_layer_norm(branch, stream, norm.weight, norm.bias, eps=norm.eps, dropout_p=dropout_p)


def _add_rms_norm(norm: Any, branch: Tensor, stream: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    return add_rms_norm(branch, stream, norm.weight, eps=norm.eps, dropout_p=dropout_p)


def _other_shape(self: Any, x: Tensor) -> str | None:
    shape = self.normalized_shape
    return None if x.shape[-len(shape) :] == shape else "the input has another shape, which PyTorch answers"


def _softmax(self: Any, input: Tensor) -> Tensor:
    return ours.Softmax.forward(self, routing.autocast("softmax", input))


def _log_softmax(self: Any, input: Tensor) -> Tensor:
    return ours.LogSoftmax.forward(self, routing.autocast("log_softmax", input))


def _number(self: Any, input: Tensor) -> str | None:
    return None if input.dim() else "a number has no dimension"


def _probabilities(self: nn.CrossEntropyLoss, input: Tensor, target: Tensor) -> str | None:
    return "class probabilities as target" if target.is_floating_point() else None


def _attends_elsewhere(
    self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> str | None:
    for x in (key, value):
        if (reason := routing.refusal(self, x)) is not None:
            return reason
    if has_other_projection(self):
        return "its projections were replaced"
    return None


def has_other_projection(attention: nn.MultiheadAttention) -> bool:
    """Whether its output projection computes something else than a product with its weight."""
    return type(attention.out_proj).forward is not nn.Linear.forward


def _own_blocks(module: nn.Module) -> str | None:
    """A subclass may keep the forward and change what it is made of."""
    base = nn.TransformerEncoderLayer if isinstance(module, nn.TransformerEncoderLayer) else nn.TransformerDecoderLayer
    for name in ("_sa_block", "_mha_block", "_ff_block"):
        if getattr(type(module), name, None) is not getattr(base, name, None):
            return f"its class has a {name} of its own"
    return None


def _encoder_layer(
    self: Any,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    return encoder_layer(self, _add_norm_of(self), src, src_mask, src_key_padding_mask, is_causal)


def _decoder_layer(
    self: Any,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Tensor:
    of_target, of_memory = (tgt_mask, tgt_key_padding_mask), (memory_mask, memory_key_padding_mask)
    is_causal = tgt_is_causal, memory_is_causal
    return decoder_layer(self, _add_norm_of(self), tgt, memory, of_target, of_memory, is_causal=is_causal)


def _add_norm_of(layer: nn.Module) -> Any:
    def add_norm_of_layer(*args: Any) -> tuple[Tensor, Tensor]:
        return add_norm(layer, *args)

    return add_norm_of_layer


def _use_nested_tensor(self: Any) -> bool:
    """What PyTorch's encoder asks before it packs a padded batch for its fast path, which knows no other kernels."""
    wanted = self.__dict__.get("use_nested_tensor", False)
    return wanted and not any(routing.has_kernel("attention", x) for x in itertools.islice(self.parameters(), 1))


LAYER_NORM = Rule(
    "layer_norm", ("norms",), "layer_norm", NORM_EFFECT, _layer_norm, _other_shape,
    residual=_add_layer_norm, residual_op="add_layer_norm",
)  # fmt: skip
RMS_NORM = Rule(
    "rms_norm", ("norms",), "rms_norm", NORM_EFFECT, _rms_norm, _other_shape,
    residual=_add_rms_norm, residual_op="add_rms_norm",
)  # fmt: skip
_SOFTMAX_EFFECT = "one pass over rows that stay in registers"
_ANY = ("attention", "norms", "activations")
_LAYER_EFFECT = f"modules are asked in every mode, not PyTorch's fast path; norms {RESIDUAL_EFFECT}"

BY_FORWARD = {
    nn.LayerNorm.forward: LAYER_NORM,
    nn.RMSNorm.forward: RMS_NORM,
    nn.GELU.forward: Rule(
        "gelu", ("activations",), "gelu", "backward from x alone, in one kernel", ours.GELU.forward
    ),
    nn.Softmax.forward: Rule(
        "softmax", ("activations",), "softmax", _SOFTMAX_EFFECT, _softmax, _number
    ),
    nn.LogSoftmax.forward: Rule(
        "log_softmax", ("activations",), "log_softmax", _SOFTMAX_EFFECT, _log_softmax, _number
    ),
    nn.CrossEntropyLoss.forward: Rule(
        "cross_entropy", ("loss",), "cross_entropy", "one pass over the logits, no copy in float32", class_loss,
        _probabilities,
    ),
    nn.MultiheadAttention.forward: Rule(
        "multihead_attention", ("attention",), "attention", ATTENTION_EFFECT + ", with need_weights too",
        ours.MultiheadAttention.forward, _attends_elsewhere,
    ),
    nn.TransformerEncoderLayer.forward: Rule(
        "transformer_encoder_layer", _ANY, "add_layer_norm", _LAYER_EFFECT, _encoder_layer, unfit=_own_blocks,
        counts_parts=True, plain_op="transformer_encoder_layer",
    ),
    nn.TransformerDecoderLayer.forward: Rule(
        "transformer_decoder_layer", _ANY, "add_layer_norm", _LAYER_EFFECT, _decoder_layer, unfit=_own_blocks,
        counts_parts=True,
    ),
    nn.TransformerEncoder.forward: Rule(
        "transformer_encoder", _ANY, "attention", "padded batches stay with their layers",
        members={"use_nested_tensor": property(_use_nested_tensor)},
    ),
}  # fmt: skip
