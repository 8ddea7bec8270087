"""`torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer`: our attention, and each residual with its norm.

What PyTorch computes in evaluation without gradients, one call that reads the parameters and asks no module, is not
taken: modules are asked in every mode, so what they are replaced by serves, and their hooks run.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels.add_norm import add_layer_norm
from fusedformer.kernels.gelu import gelu
from fusedformer.nn.modules import GELU, LayerNorm
from fusedformer.nn.multihead_attention import MultiheadAttention

AddNorm = Callable[[nn.Module, Tensor, Tensor, nn.Dropout], tuple[Tensor, Tensor]]
"""(norm, branch, stream, dropout) to the norm of s = stream + dropout(branch), and s."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OURS = {nn.MultiheadAttention: MultiheadAttention, nn.LayerNorm: LayerNorm, nn.GELU: GELU}


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` through our attention, norms and GELU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _take_ours(self)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As of `torch.nn.TransformerEncoderLayer`; `is_causal` says what `src_mask` holds."""
        return encoder_layer(self, add_norm, src, src_mask, src_key_padding_mask, is_causal)


class TransformerDecoderLayer(nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer` through our attention, norms and GELU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _take_ours(self)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As of `torch.nn.TransformerDecoderLayer`; the last two say what the masks hold."""
        of_target, of_memory = (tgt_mask, tgt_key_padding_mask), (memory_mask, memory_key_padding_mask)
        return decoder_layer(
            self, add_norm, tgt, memory, of_target, of_memory, is_causal=(tgt_is_causal, memory_is_causal)
        )


def add_norm(norm: nn.Module, branch: Tensor, stream: Tensor, dropout: nn.Dropout) -> tuple[Tensor, Tensor]:
    """The norm of s = stream + dropout(branch), and s: in one pass where nobody has to see what comes between."""
    is_known = type(norm).forward in (LayerNorm.forward, nn.LayerNorm.forward)
    if is_known and branch.dtype == stream.dtype and why_not_in_one_pass(norm, dropout) is None:
        known: Any = norm
        p = dropout.p if dropout.training else 0.0
        return add_layer_norm(branch, stream, known.weight, known.bias, eps=known.eps, dropout_p=p)
    s = stream + dropout(branch)
    return norm(s), s


def why_not_in_one_pass(norm: nn.Module, dropout: nn.Module | None) -> str | None:
    """What forbids to compute a norm together with the residual and the dropout before it; None if nothing."""
    if len(getattr(norm, "normalized_shape", (1,))) != 1:
        return "the norm is of several dimensions"
    if has_hooks(norm):
        return "the norm has hooks"
    if dropout is None:
        return None
    if type(dropout) is not nn.Dropout:
        return f"its dropout is {type(dropout).__name__}"
    if has_hooks(dropout):
        return "the dropout has hooks"
    return "everything is dropped" if dropout.training and dropout.p == 1 else None


def has_hooks(module: nn.Module) -> bool:
    """Whether something is to run before or after its forward or backward."""
    return any(getattr(module, name) for name in _HOOKS)


def encoder_layer(
    layer: nn.TransformerEncoderLayer,
    add_norm: AddNorm,
    x: Tensor,
    mask: Tensor | None,
    padding: Tensor | None,
    is_causal: bool,
) -> Tensor:
    """The forward of an encoder layer, its residuals and norms by `add_norm`."""
    y = layer.norm1(x) if layer.norm_first else x
    branch = _attend(layer.self_attn, y, y, (mask, padding), is_causal)
    y, x = _next(layer, add_norm, layer.norm1, layer.norm2, branch, x, layer.dropout1)
    return _last(layer, add_norm, layer.norm2, _feed_forward(layer, y), x, layer.dropout2)


def decoder_layer(
    layer: nn.TransformerDecoderLayer,
    add_norm: AddNorm,
    x: Tensor,
    memory: Tensor,
    of_target: tuple[Tensor | None, Tensor | None],
    of_memory: tuple[Tensor | None, Tensor | None],
    *,
    is_causal: tuple[bool, bool],
) -> Tensor:
    """The forward of a decoder layer, its residuals and norms by `add_norm`; masks are (attn_mask, padding)."""
    y = layer.norm1(x) if layer.norm_first else x
    branch = _attend(layer.self_attn, y, y, of_target, is_causal[0])
    y, x = _next(layer, add_norm, layer.norm1, layer.norm2, branch, x, layer.dropout1)
    branch = _attend(layer.multihead_attn, y, memory, of_memory, is_causal[1])
    y, x = _next(layer, add_norm, layer.norm2, layer.norm3, branch, x, layer.dropout2)
    return _last(layer, add_norm, layer.norm3, _feed_forward(layer, y), x, layer.dropout3)


def _attend(
    attention: nn.Module, x: Tensor, memory: Tensor, masks: tuple[Tensor | None, Tensor | None], is_causal: bool
) -> Tensor:
    mask, padding = masks
    return attention(
        x, memory, memory, attn_mask=mask, key_padding_mask=padding, need_weights=False, is_causal=is_causal
    )[0]


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    return layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))


def _next(
    layer: Any, add_norm: AddNorm, before: nn.Module, behind: nn.Module, branch: Tensor, x: Tensor, dropout: nn.Dropout
) -> tuple[Tensor, Tensor]:
    """What the sublayer behind reads, and the stream beside it; post-norm, both are the norm of the one before."""
    y, s = add_norm(behind if layer.norm_first else before, branch, x, dropout)
    return (y, s) if layer.norm_first else (y, y)


def _last(layer: Any, add_norm: AddNorm, norm: nn.Module, branch: Tensor, x: Tensor, dropout: nn.Dropout) -> Tensor:
    return x + dropout(branch) if layer.norm_first else add_norm(norm, branch, x, dropout)[0]


def _take_ours(layer: Any) -> None:
    """Let submodules compute by our functions; parameters are as PyTorch has drawn them."""
    for module in layer.modules():
        module.__class__ = _OURS.get(type(module), type(module))
    if layer.activation is F.gelu:
        layer.activation = gelu
