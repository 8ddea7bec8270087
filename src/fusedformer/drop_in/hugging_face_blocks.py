"""Rules for blocks of Hugging Face's models: each residual that stands before a norm is one pass with it.

Known by the source of their forward. What is between the sublayers stays as it was: attention and networks are called
as modules. The residual behind the last sublayer of a pre-norm block has its norm in the next block, and stays.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.drop_in.residual import add_norm
from fusedformer.drop_in.rules import Rule
from fusedformer.drop_in.torch_rules import RESIDUAL_EFFECT


def _bert_output(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    return add_norm(self, self.LayerNorm, self.dense(hidden_states), input_tensor, self.dropout)[0]


def _gpt2_block(
    self: Any,
    hidden_states: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    use_cache: bool | None = False,
    **kwargs: Any,
) -> Tensor:
    settings = {"past_key_values": past_key_values, "attention_mask": attention_mask}
    branch, _ = self.attn(self.ln_1(hidden_states), use_cache=use_cache, **settings, **kwargs)
    if encoder_hidden_states is not None:
        y, stream = add_norm(self, self.ln_cross_attn, branch, hidden_states)
        memory = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        branch, _ = self.crossattention(y, **settings, **memory)
    else:
        stream = hidden_states
    y, stream = add_norm(self, self.ln_2, branch, stream)
    return stream + self.mlp(y)


def _llama_layer(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = ("attention_mask", "position_ids", "past_key_values", "use_cache", "position_embeddings")
    kwargs |= dict(zip(names, args, strict=False))
    given = {name: kwargs.pop(name, False if name == "use_cache" else None) for name in names}
    branch, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given, **kwargs)
    y, stream = add_norm(self, self.post_attention_layernorm, branch, hidden_states)
    return stream + self.mlp(y)


def _vit_layer(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    branch, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
    y, stream = add_norm(self, self.layernorm_after, branch, hidden_states, self.dropout)
    return self.dropout(self.mlp(y)) + stream


def _whisper_encoder_layer(self: Any, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
    y = self.self_attn_layer_norm(hidden_states)
    branch, _ = self.self_attn(hidden_states=y, attention_mask=attention_mask, **kwargs)
    y, stream = add_norm(self, self.final_layer_norm, branch, hidden_states, self.dropout)
    out = stream + _feed_forward(self, y)
    if out.dtype == torch.float16:
        limit = torch.finfo(out.dtype).max - 1000
        out = out.clamp(-limit, limit)
    return out


def _whisper_decoder_layer(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = True,
    **kwargs: Any,
) -> Tensor:
    y, stream = self.self_attn_layer_norm(hidden_states), hidden_states
    branch, _ = self.self_attn(y, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs)
    if encoder_hidden_states is not None:
        y, stream = add_norm(self, self.encoder_attn_layer_norm, branch, stream, self.dropout)
        branch, _ = self.encoder_attn(
            y,
            key_value_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
    y, stream = add_norm(self, self.final_layer_norm, branch, stream, self.dropout)
    return stream + _feed_forward(self, y)


def _feed_forward(self: Any, y: Tensor) -> Tensor:
    inner = F.dropout(self.activation_fn(self.fc1(y)), self.activation_dropout, self.training)
    return F.dropout(self.fc2(inner), self.dropout, self.training)


def _block(name: str, forward: Any, op: str = "add_layer_norm") -> Rule:
    return Rule(name, ("norms",), op, f"norms {RESIDUAL_EFFECT}", forward, counts_parts=True)


BY_SOURCE: dict[tuple[str, ...], Rule] = {
    ("3799d79263d3",): _block("bert_output_hf", _bert_output),  # BertOutput, BertSelfOutput
    ("d099670e6973",): _block("gpt2_block_hf", _gpt2_block),  # GPT2Block
    ("1a8125909341",): _block("llama_layer_hf", _llama_layer, "add_rms_norm"),  # LlamaDecoderLayer
    ("a462ca28ad99",): _block("vit_layer_hf", _vit_layer),  # ViTLayer
    ("640e9e5a1ecf",): _block("whisper_encoder_layer_hf", _whisper_encoder_layer),  # WhisperEncoderLayer
    ("a10b76bb1a4a",): _block("whisper_decoder_layer_hf", _whisper_decoder_layer),  # WhisperDecoderLayer
}
"""As in hugging_face_rules.py."""
