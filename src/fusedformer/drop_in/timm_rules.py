"""Rules for timm's classes, known by the source of their forward."""

from typing import Any

from torch import Tensor, nn

from fusedformer.drop_in.hugging_face_rules import weight_of_other_dtype
from fusedformer.drop_in.residual import add_norm
from fusedformer.drop_in.rules import Rule
from fusedformer.drop_in.torch_rules import ATTENTION_EFFECT, LAYER_NORM, NORM_EFFECT, RESIDUAL_EFFECT, RMS_NORM
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention
from fusedformer.kernels.gelu import gelu


def attention(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """The forward of timm's `Attention`, (B, N, C) -> (B, N, `dim_out`), through our attention."""
    gate = None if self.gate is None else self.gate(x).sigmoid()
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
    q, k = self.q_norm(q), self.k_norm(k)
    dropout_p = self.attn_drop.p if self.training else 0.0
    mask = None if is_causal else attn_mask  # as timm has it where both are given and it writes attention out
    out = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
    out = self.norm(out.transpose(1, 2).flatten(2))
    return self.proj_drop(self.proj(out if gate is None else out * gate))


def _block(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    branch = self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
    y, x = add_norm(self, self.norm2, branch, x)
    return x + self.drop_path2(self.ls2(self.mlp(y)))


def _fast_norm(module: nn.Module) -> str | None:
    return "timm's fast norm is on, which has its own way with autocast" if module._fast_norm else None


def _gelu(self: nn.Module, input: Tensor) -> Tensor:
    return gelu(input)


def _gelu_tanh(self: nn.Module, input: Tensor) -> Tensor:
    return gelu(input, "tanh")


def _as(rule: Rule, name: str) -> Rule:
    """A rule of PyTorch's class for timm's of the same attributes, whose input has another name."""
    forward, refuse = rule.forward, rule.refuse

    def by_position(self: Any, x: Tensor) -> Tensor:
        return forward(self, x)  # type: ignore[misc]

    def refuse_by_position(self: Any, x: Tensor) -> str | None:
        reason = refuse(self, x)  # type: ignore[misc]
        return weight_of_other_dtype(self, x) if reason is None else reason

    return Rule(
        name, ("norms",), rule.op, NORM_EFFECT, by_position, refuse_by_position, _fast_norm,
        residual=rule.residual, residual_op=rule.residual_op,
    )  # fmt: skip


_ACTIVATION = "one kernel forward and one backward"
BY_SOURCE: dict[tuple[str, ...], Rule] = {
    ("57486bba7ce6",): Rule("attention_timm", ("attention",), "attention", ATTENTION_EFFECT, attention),
    ("960fb0bc61f3",): Rule(
        "block_timm", ("norms",), "add_layer_norm", f"norms {RESIDUAL_EFFECT}", _block, counts_parts=True
    ),
    ("23d63967920a",): _as(LAYER_NORM, "layer_norm_timm"),  # LayerNorm
    ("a1218df7e541",): _as(RMS_NORM, "rms_norm_timm"),  # RmsNorm
    ("842e096e5792",): Rule("gelu_timm", ("activations",), "gelu", _ACTIVATION, _gelu),  # GELU
    ("a203310f440a",): Rule("gelu_timm_tanh", ("activations",), "gelu", _ACTIVATION, _gelu_tanh),  # GELUTanh
}
"""By the digest of forward in timm 1.0.31: Attention, Block, and what stands behind the others."""
