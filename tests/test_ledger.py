"""The ledger of a decoder: the parameters of the model itself, and the totals that were published."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusedformer import Decoder, TransformerConfig
from fusedformer.transformer.ledger import ledger

SMALL: dict[str, Any] = {"d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 48, "vocab_size": 50, "max_seq_len": 20}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped": {"n_kv_heads": 2, "activation": "swiglu", "norm": "rms", "positions": "rotary"},
    "no bias": {"bias": False, "tie_embeddings": False, "positions": "sinusoidal"},
    "sandwich": {"norm_position": "sandwich", "layer_scale": 0.1, "positions": "alibi"},
    "post": {"norm_position": "post", "positions": "relative"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_every_parameter(variant: str) -> None:
    config = TransformerConfig(**SMALL, **VARIANTS[variant])
    model = Decoder.skeleton(config)
    assert ledger(config).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_counts_every_flop() -> None:
    """As PyTorch's own counter, but for the attention that the causal mask hides."""
    config = TransformerConfig(**SMALL, n_kv_heads=2, activation="geglu")
    model, tokens = Decoder.skeleton(config), torch.zeros(1, 20, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    of_attention = sum(row.flops for row in ledger(config).rows if row.name.startswith("attention"))
    assert of_attention == 3 * 2 * 2 * 32 * 10.5
    assert counter.get_total_flops() == 20 * (ledger(config).flops - of_attention)


def test_gpt3() -> None:
    """Brown et al. 2020: 175 billion parameters in table 2.1, 3.14E+23 FLOPs for 300 billion tokens in table D.1."""
    config = TransformerConfig.preset("gpt3-175b")
    assert (config.vocab_size, config.d_model, config.max_seq_len) == (50257, 12288, 2048)
    assert (config.n_layers, config.n_heads, config.head_dim) == (96, 96, 128)
    table = ledger(config)
    assert {row.name: row.parameters for row in table.rows} == {
        "token embedding": 617_558_016,
        "position embedding": 25_165_824,
        "query": 14_495_514_624,
        "key": 14_495_514_624,
        "value, down": 14_495_514_624,
        "value, up (output)": 14_495_514_624,
        "feed-forward up": 57_982_058_496,
        "feed-forward down": 57_982_058_496,
        "attention scores": 0,
        "attention, weighted": 0,
        "biases": 10_616_832,
        "norms, layer scale": 4_743_168,
        "unembedding": 0,
    }
    assert table.parameters == 174_604_259_328
    model = Decoder.skeleton(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 174_604_259_328
    # Matrices and both embeddings alone, the head not tied: the figure that is often quoted.
    matrices = [row.parameters for row in table.rows[2:8]]
    assert sum(matrices) + 2 * 617_558_016 == 175_181_291_520
    # Theirs is 6 FLOPs a parameter and token, no attention.
    assert 6 * table.parameters * 300e9 == pytest.approx(3.14e23, rel=0.005)
    assert table.training_flops * 300e9 == pytest.approx(3.14e23, rel=0.02)


def test_is_printed_as_a_table() -> None:
    *_, total = str(ledger(TransformerConfig.preset("gpt2"))).splitlines()
    assert total.split() == ["total", "124,439,808", "265,956,864"]
