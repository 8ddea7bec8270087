"""Tiny models of Hugging Face transformers, weights random, and how two attention implementations are compared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

LENGTH = 9
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
GROUPED = SIZES | TOKENS | {"num_key_value_heads": 2, "max_position_embeddings": 64}
WIDE = GROUPED | {"head_dim": 8}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 60, "n_positions": 64} | TOKENS
GEMMA2 = {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5, "rope_scaling": None}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
WHISPER = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
    "max_source_positions": 10, "max_target_positions": 30, "decoder_start_token_id": 1,
}  # fmt: skip

DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 5}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", WIDE | {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", WIDE | GEMMA2),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", WIDE),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", WIDE | EXPERTS),
}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SIZES | {"max_position_embeddings": 20}),
    "vit": ("ViTModel", "ViTConfig", {**SIZES, "image_size": 12, "patch_size": 4}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5 | TOKENS | {"decoder_start_token_id": 0}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER | TOKENS),
}


def make_model(kind: str) -> Any:
    """A model whose weights show when they are left out: norms, biases and sinks included."""
    model_name, config_name, settings = (DECODERS | OTHERS)[kind]
    config = getattr(transformers, config_name)(**settings)
    model = getattr(transformers, model_name)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and "bias" not in name and "sinks" not in name
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator) + is_scale)
    return model.eval()


def random_tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(1))


def padding_mask(side: str | None) -> Tensor | None:
    """(2, LENGTH) of ones, with zeros at one side of the second row; or None."""
    if side is None:
        return None
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    if side != "neither":
        mask[1, slice(0, 3) if side == "left" else slice(LENGTH - 4, None)] = 0
    return mask


def inputs_of(kind: str, padding: Tensor | None) -> dict[str, Tensor]:
    """Arguments of a model's forward."""
    generator = torch.Generator().manual_seed(2)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 12, 12, generator=generator)}
    if kind == "whisper":
        features = torch.randn(2, 8, 20, generator=generator)
        return {"input_features": features, "decoder_input_ids": random_tokens(length=5)}
    inputs = {"input_ids": random_tokens()}
    if padding is not None:
        inputs["attention_mask"] = padding
    return inputs | ({"decoder_input_ids": random_tokens(length=5)} if kind == "t5" else {})


def assert_same(model: Any, call: Callable[[], Tensor], names: tuple[str, str] = ("eager", "fusedformer")) -> None:
    """The result of `call` and the gradients of all parameters, by the one attention and by the other."""
    results = []
    for name in names:
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
        model.zero_grad()
        out = call()
        out.square().mean().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((out.detach(), gradients))
    (expected, wanted), (out, found) = results
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for key, gradient in wanted.items():
        # Some gradients are zero but for rounding, that of the bias of keys for one.
        scale = max(gradient.abs().max().item(), 1e-3 * largest.item())
        error = (found[key] - gradient).abs().max().item()
        assert error <= 5e-5 * scale, f"gradient of {key}: off by {error:.1e}, of {scale:.1e}"
