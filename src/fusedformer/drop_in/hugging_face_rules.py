"""Rules for the norms and activations of Hugging Face's models, known by the source of their forward.

Their classes repeat one another: what LlamaRMSNorm computes, 140 classes of transformers 5.23 do, to the letter.
Blocks, which have a residual before a norm: hugging_face_blocks.py.
"""

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.drop_in.classes import Patched
from fusedformer.drop_in.known_source import digest
from fusedformer.drop_in.rules import Rule
from fusedformer.drop_in.torch_rules import NORM_EFFECT
from fusedformer.kernels import library
from fusedformer.kernels.add_norm import add_rms_norm
from fusedformer.kernels.gelu import gelu
from fusedformer.kernels.glu import geglu, swiglu
from fusedformer.kernels.rms_norm import rms_norm
from fusedformer.nn.transformer_layers import has_hooks

_OF_ACT, _TANH = "618093a6bcb8", ("9d0b9dd71753", "4caa3bda3218", "1f9121cf6b0a")
_SILU = "SiLUActivation"


def _epsilon(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _own_weight(norm: Any) -> Tensor | None:
    return getattr(norm, "weight", None)


def _one_plus_weight(norm: Any) -> Tensor:
    return 1.0 + norm.weight.float()


def weight_of_other_dtype(norm: Any, x: Tensor) -> str | None:
    """The result would be of the wider dtype, as PyTorch promotes."""
    weight = norm.weight
    if weight is None or weight.dtype == x.dtype:
        return None
    return f"the weight is {library.short(weight.dtype)}, the input {library.short(x.dtype)}: so is not the result"


def _rms_norm_rule(name: str, weight_of: Any, refuse: Any = None) -> Rule:
    def forward(self: Any, x: Tensor) -> Tensor:
        return rms_norm(x, weight_of(self), eps=_epsilon(self))

    def residual(norm: Any, branch: Tensor, stream: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
        return add_rms_norm(branch, stream, weight_of(norm), eps=_epsilon(norm), dropout_p=dropout_p)

    def by_position(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, *kwargs.values())  # whatever the class calls its input

    def refuse_by_position(self: Any, *args: Any, **kwargs: Any) -> str | None:
        return refuse(self, *args, *kwargs.values())

    return Rule(
        name, ("norms",), "rms_norm", NORM_EFFECT, by_position, None if refuse is None else refuse_by_position,
        residual=residual, residual_op="add_rms_norm",
    )  # fmt: skip


def approximation(module: nn.Module) -> str | None:
    """Which GELU a module is, "none" or "tanh", or "silu" for that; None for another one, or one not known."""
    cls = type(module).fused_original if isinstance(module, Patched) else type(module)
    if cls.forward is nn.SiLU.forward or (cls.__name__ == _SILU and cls.__module__ == "transformers.activations"):
        return "silu"
    if cls.forward is nn.GELU.forward:
        return str(module.approximate)
    known = digest(cls.forward)
    if known in _TANH:
        return "tanh"
    return _of_function(module.act) if known == _OF_ACT and hasattr(module, "act") else None


def _of_function(act: Any) -> str | None:
    if act is F.gelu:
        return "none"
    if (
        isinstance(act, functools.partial)
        and act.func is F.gelu
        and not act.args
        and set(act.keywords) <= {"approximate"}
    ):
        return str(act.keywords.get("approximate", "none"))
    return None


def _no_gelu(module: nn.Module) -> str | None:
    return None if approximation(module) in ("none", "tanh") else "the function it calls is not one that we know"


def _gelu_of_function(self: Any, input: Tensor) -> Tensor:
    return gelu(input, _of_function(self.act) or "none")


def _gelu_tanh(self: Any, input: Tensor) -> Tensor:
    return gelu(input, "tanh")


def _gated(activation: nn.Module, gate: Tensor, up: Tensor | None) -> Tensor:
    kind = approximation(activation)
    return swiglu(gate, up) if kind == "silu" else geglu(gate, up, approximate=str(kind))


def _gated_rule(name: str, activation: str, forward: Any) -> Rule:
    """A network whose activation, the attribute `activation`, and the product behind it are one kernel."""

    def unfit(module: nn.Module) -> str | None:
        kind = approximation(getattr(module, activation))
        return None if kind is not None else "its activation is neither SiLU nor GELU"

    def refuse(self: nn.Module, *args: Any, **kwargs: Any) -> str | None:
        return "the activation has hooks" if has_hooks(getattr(self, activation)) else None

    effect = "activation and product in one kernel: 3 elements moved in place of 5"
    return Rule(name, ("activations",), "glu", effect, forward, refuse, unfit)


def _gate_and_up(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    (x,) = (*args, *kwargs.values())
    return self.down_proj(_gated(self.act_fn, self.gate_proj(x), self.up_proj(x)))


def _gate_up(self: Any, hidden_states: Tensor) -> Tensor:
    return self.down_proj(_gated(self.activation_fn, self.gate_up_proj(hidden_states), None))


def _wi(self: Any, hidden_states: Tensor) -> Tensor:
    x = self.dropout(_gated(self.act, self.wi_0(hidden_states), self.wi_1(hidden_states)))
    weight = self.wo.weight
    # T5 keeps this layer in float32 where all else is float16; int8 is quantised.
    if isinstance(weight, Tensor) and weight.dtype != x.dtype and weight.is_floating_point():
        x = x.to(weight.dtype)
    return self.wo(x)


_GELU_EFFECT = "one kernel forward and one backward, where it was written out too"
_LLAMA = _rms_norm_rule("rms_norm_hf", _own_weight, weight_of_other_dtype)
_WIDE = _rms_norm_rule("rms_norm_hf_wide", _own_weight)
_GEMMA = _rms_norm_rule("rms_norm_hf_one_plus", _one_plus_weight)
_GEMMA_3N = _rms_norm_rule("rms_norm_hf_scaled", lambda norm: _own_weight(norm) if norm.with_scale else None)
_GATE_AND_UP = _gated_rule("gated_mlp_hf", "act_fn", _gate_and_up)
_NEW_GELU = Rule("gelu_hf_tanh", ("activations",), "gelu", _GELU_EFFECT, _gelu_tanh)
_MEAN_SQUARE, _POWER = "6dc7d2ba16b4", "4c9e92e3757c"

BY_SOURCE: dict[tuple[str, ...], Rule] = {
    ("9635bcd843f3",): _LLAMA,  # LlamaRMSNorm
    ("3152525beceb",): _LLAMA,  # T5LayerNorm
    ("eef4e978a32a",): _WIDE,  # GptOssRMSNorm
    ("b6d7ab076811",): _WIDE,  # NemotronHRMSNorm
    ("7ba3b3ea45ac", _MEAN_SQUARE): _WIDE,  # MoshiRMSNorm
    ("7ff42f05720e", _MEAN_SQUARE): _rms_norm_rule("rms_norm_hf_plain", lambda _: None),  # Llama4TextL2Norm
    ("2dad5f576075", _MEAN_SQUARE): _GEMMA,  # GemmaRMSNorm
    ("a40eed024292", _POWER): _GEMMA_3N,  # Gemma3nRMSNorm
    (_OF_ACT,): Rule(
        "gelu_hf", ("activations",), "gelu", _GELU_EFFECT, _gelu_of_function, unfit=_no_gelu
    ),  # GELUActivation, GELUTanh
    (_TANH[0],): _NEW_GELU,  # NewGELUActivation
    (_TANH[1],): _NEW_GELU,  # FastGELUActivation
    (_TANH[2],): _NEW_GELU,  # AccurateGELUActivation
    ("7d2027d4464e",): _GATE_AND_UP,  # LlamaMLP, GemmaMLP
    ("0d7b11835db6",): _GATE_AND_UP,  # Qwen2_5_VLMLP
    ("e8d404cbecb9",): _gated_rule("gate_up_mlp_hf", "activation_fn", _gate_up),  # Phi3MLP
    ("95b63e5ccb21",): _gated_rule("gated_dense_hf", "act", _wi),  # T5DenseGatedActDense
}
"""By the digests of forward and, where it calls one, of `_norm`; a class of transformers 5.23 that has it."""
