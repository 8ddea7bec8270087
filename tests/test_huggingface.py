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
