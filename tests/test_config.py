"""The configuration: presets with published sizes, overrides, and every impossible value as a ValueError."""

import dataclasses
from typing import Any

import pytest
import torch

from fusedformer import Decoder, Encoder, EncoderDecoder, TransformerConfig, VisionTransformer
from fusedformer.transformer.model import Model
from fusedformer.transformer.presets import PRESETS

SMALL: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 64}


@pytest.mark.parametrize(
    ("preset", "architecture", "parameters"),
    [
        # 22,713,216 as published, less the pooling layer of 384 x 384 + 384, which no sentence embedding reads.
        ("minilm-l6", Encoder, 22_713_216 - 147_840),
        ("bert-base", Encoder, 109_482_240 - 590_592),  # as published, less the pooling layer
        ("gpt2", Decoder, 124_439_808),
        ("gpt2-medium", Decoder, 354_823_168),
        ("gpt2-large", Decoder, 774_030_080),
        ("gpt2-xl", Decoder, 1_557_611_200),
        ("llama-3.2-1b", Decoder, 1_235_814_400),
        ("smollm2-135m", Decoder, 134_515_008),
        ("t5-small", EncoderDecoder, 60_506_624),
        # 72,593,920 as published, less 1,500 fixed positions, with biases of keys, which are 0 there.
        ("whisper-base", EncoderDecoder, 72_593_920 - 1500 * 512 + 3 * 6 * 512),
        ("vit-b/16", VisionTransformer, 86_567_656),
        ("dinov2-s/14", VisionTransformer, 22_056_576 - 384),  # as published, less a token of pre-training
    ],
)
def test_published_parameter_counts(preset: str, architecture: type[Model], parameters: int) -> None:
    model = architecture.skeleton(TransformerConfig.preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_model(preset: str) -> None:
    config = TransformerConfig.preset(preset, n_layers=2)  # all layers: test_published_parameter_counts
    text: list[type[Model]] = [EncoderDecoder] if config.n_mels else [Encoder, Decoder, EncoderDecoder]
    architectures: list[type[Model]] = [VisionTransformer] if config.image_size else text
    for architecture in architectures:
        assert not list(architecture.skeleton(config).buffers())


def test_overrides_replace_and_are_checked_together() -> None:
    config = TransformerConfig.preset("gpt2", n_layers=2, n_heads=6)
    assert (config.n_layers, config.n_heads, config.head_dim, config.d_ff) == (2, 6, 128, 3072)
    assert TransformerConfig.preset("gpt2").n_layers == 12
    with pytest.raises(ValueError, match="d_model 768 is not a multiple of n_heads 7"):
        TransformerConfig.preset("gpt2", n_heads=7)


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_fields(preset: str) -> None:
    config = TransformerConfig.preset(preset, dropout=0.25)
    assert TransformerConfig.from_fields(dataclasses.asdict(config)) == config


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig(**SMALL).n_heads = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"n_layers": -1}, "n_layers must be at least 1, got -1"),
        ({"d_ff": 2.5}, "d_ff must be an integer, got 2.5"),
        ({"n_heads": True}, "n_heads must be an integer, got True"),
        ({"n_heads": "4"}, "n_heads must be an integer, got '4'"),
        ({"n_heads": 5}, "d_model 32 is not a multiple of n_heads 5"),
        ({"d_model": 4104, "n_heads": 8}, "d_model 4104 and n_heads 8 make heads of 513 dimensions: .* 512 at most"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"n_kv_heads": 2.0}, "n_kv_heads must be an integer or None, got 2.0"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id must be at least 0, got -1"),
        ({"n_kv_heads": 0}, "n_heads 4 is not a multiple of n_kv_heads 0"),
        ({"vocab_size": -3}, "vocab_size must be at least 0, got -3"),
        ({"image_size": 9, "patch_size": 2}, "image_size 9 is not a multiple of patch_size 2"),
        (
            {"activation": "swish"},
            "activation must be one of gelu, gelu_tanh, relu, geglu, geglu_tanh, swiglu, got 'swish'",
        ),
        ({"norm_position": "middle"}, "norm_position must be one of pre, post, sandwich, got 'middle'"),
        ({"pooling": "max"}, "pooling must be one of class, mean, got 'max'"),
        ({"positions": "absolute"}, "positions must be one of learned, sinusoidal, rotary, .*, got 'absolute'"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth must be in \[0, 1\), got 1.0"),
        ({"layer_scale": -0.1}, "layer_scale must be a finite number from 0 on, got -0.1"),
        ({"layer_scale": float("inf")}, "layer_scale must be a finite number from 0 on, got inf"),
        ({"positions": "rotary", "rotary_dim": 3}, "rotary_dim 3 must be even and at most the head dimension 8"),
        ({"positions": "rotary", "rotary_dim": 10}, "rotary_dim 10 must be even and at most the head dimension 8"),
        ({"positions": "rotary", "d_model": 36}, "rotary_dim 9 must be even and at most the head dimension 9"),
        ({"positions": "rotary", "rotary_base": 1.0}, "rotary_base must be a finite number above 1, got 1.0"),
        ({"positions": "rotary", "rotary_factor": 0.0}, "rotary_factor must be a finite number above 0, got 0.0"),
        ({"rotary_scaling": "yarn"}, "rotary_scaling must be one of none, linear, llama3, got 'yarn'"),
        ({"positions": "rotary", "rotary_scaling": "llama3"}, "'llama3' needs rotary_original_len >= 1"),
        (
            {"positions": "rotary", "rotary_scaling": "llama3", "rotary_low_freq_factor": 4.0},
            "rotary_low_freq_factor 4.0 must be above 0 and below rotary_high_freq_factor 4.0",
        ),
        ({"positions": "relative", "relative_buckets": 6}, "relative_buckets must be a positive multiple of 4, got 6"),
        (
            {"positions": "relative", "relative_max_distance": 16},
            "relative_max_distance 16 must be above half of relative_buckets 32",
        ),
        ({"n_mels": 80}, "n_mels 80 and max_source_len 0: both or neither are 0"),
        (
            {"d_model": 13, "n_heads": 1, "n_mels": 80, "max_source_len": 8},
            "d_model 13 must be even and at least 4 with n_mels 80",
        ),
        ({"scale_tied_head": True, "tie_embeddings": False}, "scale_tied_head is True and tie_embeddings False"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
        ({"norm_eps": 0.0}, r"norm_eps must be in \(0, 1\), got 0.0"),
        ({"norm_eps": "small"}, "norm_eps must be a number, got 'small'"),
        ({"bias": 1}, "bias must be True or False, got 1"),
        ({"vocab_size": 10, "decoder_start_token_id": 10}, "decoder_start_token_id 10 is outside a vocabulary of 10"),
    ],
)
def test_impossible_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**SMALL, **fields})


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'gpt5': choose from gpt2, gpt2-medium"):
        TransformerConfig.preset("gpt5")
    with pytest.raises(ValueError, match=r"unknown configuration field n_head, width: choose from d_model"):
        TransformerConfig.preset("gpt2", n_head=3, width=2)
    with pytest.raises(ValueError, match=r"missing configuration field n_heads, d_ff"):
        TransformerConfig.from_fields({"d_model": 8, "n_layers": 1})
    with pytest.raises(ValueError, match=r"a configuration is a mapping of fields to values, got \['d_model'\]"):
        TransformerConfig.from_fields(["d_model"])  # type: ignore[arg-type]


def test_the_largest_heads_that_attention_computes() -> None:
    config = TransformerConfig(**{**SMALL, "d_model": 1024, "n_heads": 4}, vocab_size=5, max_seq_len=2)
    assert Decoder(config)(torch.zeros(1, 2, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("config", ["gpt2", None, {"d_model": 8}])
def test_what_is_no_configuration(config: Any) -> None:
    with pytest.raises(ValueError, match=f"config must be a TransformerConfig.*, got {config!r}"):
        Decoder(config)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Encoder, "Encoder needs vocab_size >= 1, max_seq_len >= 1, the configuration has 0"),
        (Decoder, "Decoder needs vocab_size >= 1"),
        (EncoderDecoder, "EncoderDecoder needs vocab_size >= 1"),
        (
            VisionTransformer,
            "VisionTransformer needs image_size >= 1, patch_size >= 1, n_channels >= 1, the configuration has 0",
        ),
    ],
)
def test_sizes_that_an_architecture_needs(architecture: type[Model], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(TransformerConfig(**SMALL))
