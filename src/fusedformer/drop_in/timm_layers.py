"""Layers to build timm's models with: `attn_layer=`, `norm_layer=` and `act_layer=` of `timm.create_model`.

    from fusedformer.drop_in import timm_layers
    timm.create_model("vit_small_patch16_224", **timm_layers.ALL)

Each is the class of that name in timm with another `forward`: the same constructor, the same `state_dict`. They are for
models that take classes there: of vision transformers all three, of most others the norm and the activation.
"""

from typing import Any

import timm.layers
from torch import Tensor

from fusedformer import nn as fused
from fusedformer.drop_in import calls, timm_rules
from fusedformer.kernels.gelu import gelu


class Attention(timm.layers.Attention):
    """timm's `Attention` through `fusedformer.scaled_dot_product_attention`, whether `fused_attn` or not."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, `dim_out`); attn_mask broadcastable to (B, heads, N, N), bool or added to the scores."""
        calls.served(self, "attention", x)
        return timm_rules.attention(self, x, attn_mask, is_causal)


class LayerNorm(timm.layers.LayerNorm):
    """timm's `LayerNorm` through `fusedformer.layer_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the trailing `normalized_shape` dimensions of `x`."""
        calls.served(self, "layer_norm", x)
        return fused.LayerNorm.forward(self, x)  # type: ignore[arg-type]  # a torch.nn.LayerNorm


class RmsNorm(timm.layers.RmsNorm):
    """timm's `RmsNorm` through `fusedformer.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the trailing `normalized_shape` dimensions of `x`."""
        calls.served(self, "rms_norm", x)
        return fused.RMSNorm.forward(self, x)  # type: ignore[arg-type]  # it has the same attributes


class GELU(timm.layers.GELU):
    """timm's `GELU` through `fusedformer.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        """GELU of every element, by the error function."""
        calls.served(self, "gelu", input)
        return gelu(input)


class GELUTanh(timm.layers.GELUTanh):
    """timm's `GELUTanh` through `fusedformer.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        """GELU of every element, by the approximation with tanh."""
        calls.served(self, "gelu", input)
        return gelu(input, "tanh")


ALL: dict[str, Any] = {"attn_layer": Attention, "norm_layer": LayerNorm, "act_layer": GELU}
"""What a vision transformer of timm is by default, as keyword arguments."""
