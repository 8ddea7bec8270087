"""Equal to the Hugging Face models, random weights copied over: outputs in float32 to 1e-5."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedformer.transformer.huggingface.load import from_huggingface

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def randomised(model: Any) -> Any:
    """Weights that show when they are left out, norms and biases included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (parameter.dim() == 1 and "bias" not in name))
    return model.eval()


def copy_of(model: Any) -> Any:
    return from_huggingface(model.config.to_dict(), model.state_dict())


def random_tokens(*shape: int, vocab_size: int = 50) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(2))


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


ROPE = {
    "default": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPE)
@torch.no_grad()
def test_llama(rope: str) -> None:
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, vocab_size=50, max_position_embeddings=64, rope_parameters=ROPE[rope]
    )
    theirs = randomised(transformers.LlamaForCausalLM(config))
    tokens = random_tokens(2, 40)
    assert_equal(copy_of(theirs)(tokens), theirs(tokens).logits)


@torch.no_grad()
def test_gpt2() -> None:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=20, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    theirs = randomised(transformers.GPT2LMHeadModel(config))
    tokens = random_tokens(2, 20)
    assert_equal(copy_of(theirs)(tokens), theirs(tokens).logits)


@torch.no_grad()
def test_bert() -> None:
    config = transformers.BertConfig(**SIZES, vocab_size=50, max_position_embeddings=20)
    theirs = randomised(transformers.BertModel(config))
    tokens, types = random_tokens(3, 15), random_tokens(3, 15, vocab_size=2)
    mask = torch.arange(15) < torch.tensor([[15], [6], [1]])
    expected = theirs(tokens, attention_mask=mask, token_type_ids=types).last_hidden_state
    assert_equal(copy_of(theirs)(tokens, mask, types)[mask], expected[mask])


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@torch.no_grad()
def test_t5(feed_forward: str) -> None:
    config = transformers.T5Config(
        d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=2, vocab_size=50, feed_forward_proj=feed_forward,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0,
        tie_word_embeddings=feed_forward == "relu",
    )  # fmt: skip
    theirs = randomised(transformers.T5ForConditionalGeneration(config))
    source, target = random_tokens(2, 30), random_tokens(2, 20)
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    expected = theirs(source, attention_mask=mask, labels=target).logits
    assert_equal(copy_of(theirs)(source, target, mask), expected)


@torch.no_grad()
def test_whisper() -> None:
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=50, num_mel_bins=6, max_source_positions=12,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    theirs = randomised(transformers.WhisperForConditionalGeneration(config))
    fixed = transformers.WhisperForConditionalGeneration(config).model.encoder.embed_positions.weight
    theirs.model.encoder.embed_positions.weight.copy_(fixed)  # not random: sines, which ours computes
    sound = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(3))
    target = random_tokens(2, 9)
    assert_equal(copy_of(theirs)(sound, target), theirs(sound, labels=target).logits)


@pytest.mark.parametrize("size", [(12, 12), (8, 20)])
@torch.no_grad()
def test_vit(size: tuple[int, int]) -> None:
    config = transformers.ViTConfig(**SIZES, image_size=12, patch_size=4, num_labels=5)
    theirs = randomised(transformers.ViTForImageClassification(config))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    assert_equal(copy_of(theirs)(images), theirs(images, interpolate_pos_encoding=True).logits)


@pytest.mark.parametrize("size", [(12, 12), (8, 20)])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
@torch.no_grad()
def test_dinov2(kind: str, size: tuple[int, int]) -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "intermediate_size"}
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=12, patch_size=4)
    theirs = randomised(getattr(transformers, f"{kind}Model")(config))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    assert_equal(copy_of(theirs).hidden(images), theirs(images).last_hidden_state)


def renamed(tensors: dict[str, Tensor], *names: tuple[str, str]) -> dict[str, Tensor]:
    """The tensors under older names, or inside a larger model: pairs of a regular expression and its replacement."""
    for expression, replacement in names:
        tensors = {re.sub(expression, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


OLD_VIT = (
    (r"layers\.(\d+)", r"encoder.layer.\1"),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


@torch.no_grad()
def test_names_of_older_versions() -> None:
    images = torch.randn(2, 3, 12, 12)
    config = transformers.ViTConfig(**SIZES, image_size=12, patch_size=4, num_labels=5)
    theirs = randomised(transformers.ViTForImageClassification(config))
    old = renamed(theirs.state_dict(), *OLD_VIT)
    assert "vit.encoder.layer.1.attention.attention.value.bias" in old
    assert "vit.encoder.layer.1.output.dense.bias" in old
    assert_equal(from_huggingface(config.to_dict(), old)(images), copy_of(theirs)(images))

    sizes = {name: size for name, size in SIZES.items() if name != "intermediate_size"}
    config = transformers.Dinov2Config(**sizes, image_size=12, patch_size=4)
    theirs = randomised(transformers.Dinov2Model(config))
    old = renamed(theirs.state_dict(), *OLD_VIT[1:5], ("^", "dinov2."))
    assert "dinov2.encoder.layer.0.attention.attention.query.weight" in old
    assert_equal(from_huggingface(config.to_dict(), old)(images), copy_of(theirs)(images))


@torch.no_grad()
def test_gpt2_as_it_was_published() -> None:
    """Without the model's prefix and its tied head, with the causal mask as a tensor."""
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=20, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    theirs = randomised(transformers.GPT2LMHeadModel(config))
    old = renamed(theirs.state_dict(), (r"^transformer\.", ""))
    del old["lm_head.weight"]
    old["h.0.attn.bias"] = torch.ones(1, 1, 20, 20)
    tokens = random_tokens(2, 20)
    assert_equal(from_huggingface(config.to_dict(), old)(tokens), theirs(tokens).logits)


@torch.no_grad()
def test_llama_configurations_of_older_versions() -> None:
    config = transformers.LlamaConfig(
        **SIZES, vocab_size=50, max_position_embeddings=64, rope_parameters=ROPE["linear"], tie_word_embeddings=True
    )
    theirs = randomised(transformers.LlamaForCausalLM(config))
    fields = config.to_dict()
    del fields["rope_parameters"], fields["head_dim"]
    fields |= {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    tensors = theirs.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    tokens = random_tokens(2, 40)
    assert_equal(from_huggingface(fields, tensors)(tokens), theirs(tokens).logits)


def small_llama() -> Any:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=50, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config)


def test_every_tensor_that_does_not_fit_is_listed() -> None:
    model = small_llama()
    tensors = model.state_dict()
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.2.stray"] = torch.ones(1)
    tensors["model.layers.0.self_attn.v_proj.weight"] = torch.ones(32, 32)  # of as many heads as the queries
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    problems = (
        "missing layers.1.self_attn.k_proj.weight; extra layers.2.stray; norm.weight is torch.int8, expected one of "
        "torch.float32, torch.float16, torch.bfloat16, torch.float64; "
        "layers.0.self_attn.v_proj.weight has shape (32, 32), expected (16, 32)"
    )
    with pytest.raises(ValueError, match="the weights do not fit") as error:
        from_huggingface(model.config.to_dict(), tensors)
    assert sorted(problems.split("; ")) == sorted(str(error.value).split(": ", maxsplit=1)[1].split("; "))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba': only gpt2, llama, .* can be read"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': only 'silu' is computed here"),
        ({"attention_bias": True}, "attention_bias is True: only False is computed here"),
        ({"head_dim": 16}, "head_dim is 16: 4 heads of a model of width 32 have 8"),
        ({"hidden_size": None, "rms_norm_eps": None}, "the configuration has no hidden_size, rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn': only 'default', 'linear', 'llama3' is comp"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "the configuration has no factor"),
        ({"num_attention_heads": 8, "head_dim": None, "num_key_value_heads": 3}, "n_heads 8 is not a multiple of n_kv"),
    ],
)
def test_configurations_that_we_do_not_compute(fields: dict[str, Any], message: str) -> None:
    model = small_llama()
    with pytest.raises(ValueError, match=message):
        from_huggingface({**model.config.to_dict(), **fields}, model.state_dict())


def test_sides_of_different_sizes() -> None:
    config = {"model_type": "whisper", "encoder_layers": 4, "decoder_layers": 2}
    with pytest.raises(ValueError, match="encoder_layers 4 and decoder_layers 2: only equal values are computed here"):
        from_huggingface(config, {})


@torch.no_grad()
def test_weights_are_taken_as_they_are() -> None:
    model = small_llama().half()
    ours = from_huggingface(model.config.to_dict(), model.state_dict())
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    assert not ours.training
    table = ours.get_parameter("token_embedding.weight")
    assert table.data_ptr() == model.model.embed_tokens.weight.data_ptr()
