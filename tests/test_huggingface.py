"""Equal to the Hugging Face models, random weights copied over: outputs in float32 to 1e-5."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fusedformer.transformer.huggingface.load import from_huggingface

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

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
    theirs.model.encoder.embed_positions.reset_parameters()  # ours are fixed; see test_audio_positions
    model = transformers.WhisperForConditionalGeneration(config)
    theirs.model.encoder.embed_positions.load_state_dict(model.model.encoder.embed_positions.state_dict())
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
