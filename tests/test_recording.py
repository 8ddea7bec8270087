"""record_attention: the pattern is what the layer computed with, for self and cross-attention, masks and biases."""

from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor, nn

from fusedformer import TransformerConfig, VisionTransformer, record_attention
from fusedformer.transformer.attention import CrossAttention
from fusedformer.transformer.recording import attention_pattern

VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": {"positions": "rotary", "n_kv_heads": 1},
    "alibi": {"positions": "alibi"},
    "relative": {"positions": "relative", "scale_attention": False},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_patterns_and_value_maps_make_the_output(variant: str, masked: bool) -> None:
    """The layer's output is the sum over heads of pattern @ x @ down.T @ up.T: its whole computation, written out."""
    model = make_model("decoder", bias=False, n_layers=1, **{"n_kv_heads": 2, **VARIANTS[variant]})
    layer = model.stack.blocks[0].attention
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    mask = torch.arange(9) < torch.tensor([[9], [4]]) if masked else None
    with record_attention(model) as patterns:
        model(random_tokens(2, 9), mask)
    ((x, out),) = seen
    (pattern,) = patterns["stack.blocks.0.attention"]
    expected = sum(pattern[:, head] @ x @ down.T @ up.T for head in range(2) for down, up in [layer.value_map(head)])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 2, 9))
    assert (pattern.triu(1) == 0).all()
    assert (pattern[:, :, 1:, 0] > 0).all()


def test_value_map_of_a_head_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="head is 2, expected 0 to 1"):
        make_model("decoder").stack.blocks[0].attention.value_map(2)


def test_chosen_layers_and_heads() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(2, 10), random_tokens(2, 7)
    with record_attention(model) as everything:
        model(source, target)
    with record_attention(model, layers=[1], heads=[1]) as chosen:
        model(source, target)
        model(source, target)
    names = ["encoder.blocks.1.attention", "decoder.blocks.1.attention", "decoder.blocks.1.cross_attention"]
    assert list(chosen) == names
    assert [tuple(chosen[name][0].shape) for name in names] == [(2, 1, 10, 10), (2, 1, 7, 7), (2, 1, 7, 10)]
    for name in names:
        assert len(chosen[name]) == 2
        assert torch.equal(chosen[name][0], everything[name][0][:, 1:])


def test_padding_of_the_source_is_not_looked_at() -> None:
    model = make_model("encoder_decoder")
    mask = torch.arange(10) < torch.tensor([[10], [4]])
    with record_attention(model) as patterns:
        model(random_tokens(2, 10), random_tokens(2, 7), mask)
    for name in ("encoder.blocks.0.attention", "decoder.blocks.1.cross_attention"):
        (pattern,) = patterns[name]
        assert (pattern[1, :, :, 4:] == 0).all()
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))


def test_text_looks_at_an_image() -> None:
    """Cross-attention from the positions of a text to the patches of an image."""
    sizes: dict[str, Any] = {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64}
    torch.manual_seed(0)
    patches = VisionTransformer(
        TransformerConfig(**sizes, image_size=8, patch_size=4, n_channels=2, pooling="mean")
    ).hidden(torch.randn(3, 2, 8, 8))
    text = torch.randn(3, 5, 32)
    cross = CrossAttention(TransformerConfig(**sizes))
    theirs = nn.MultiheadAttention(32, 2, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([cross.query.weight.data, cross.key_value.weight.data])
    theirs.in_proj_bias.data = torch.cat([cross.query.bias.data, cross.key_value.bias.data])
    theirs.out_proj = cross.out  # type: ignore[assignment]
    expected, weights = theirs(text, patches, patches, average_attn_weights=False)
    memory = cross.remember(patches)
    torch.testing.assert_close(cross(text, memory), expected, rtol=1e-5, atol=1e-5)
    (query,) = cross.split_heads(cross.query(text), 2)
    torch.testing.assert_close(attention_pattern(query, memory.keys), weights, rtol=1e-5, atol=1e-5)
    assert weights.shape == (3, 2, 5, 4)


def test_more_keys_than_attention_has_features() -> None:
    q, k = torch.randn(2, 1, 600, 2, 4)
    scores = torch.einsum("bshd,bthd->bhst", q, k) / 2
    torch.testing.assert_close(attention_pattern(q, k), scores.softmax(-1), rtol=1e-5, atol=1e-7)


def test_nothing_is_recorded_afterwards() -> None:
    model = make_model("decoder")
    with record_attention(model) as patterns:
        model(random_tokens(1, 4))
    with pytest.raises(ValueError, match="tokens hold values"), record_attention(model) as of_failure:
        model(random_tokens(1, 4) + 100)
    model(random_tokens(1, 4))
    assert [len(calls) for calls in patterns.values()] == [1, 1]
    assert [len(calls) for calls in of_failure.values()] == [0, 0]


def test_decoding_gives_one_row_a_token() -> None:
    model = make_model("decoder")
    with record_attention(model, layers=[0]) as patterns:
        model.generate(random_tokens(1, 4), 3)
    assert [tuple(p.shape[2:]) for p in patterns["stack.blocks.0.attention"]] == [(4, 4), (1, 5), (1, 6)]


def test_bad_input() -> None:
    model = make_model("encoder")
    with (
        pytest.raises(ValueError, match="layers 2, 3: the model has 0 to 1"),
        record_attention(model, layers=[0, 2, 3]),
    ):
        pass
    with pytest.raises(ValueError, match="heads -1: the model has 0 to 1"), record_attention(model, heads=[-1]):
        pass
    with pytest.raises(ValueError, match="Linear has no stack of blocks"), record_attention(nn.Linear(2, 2)):
        pass
    with record_attention(model, layers=[1]):
        with pytest.raises(ValueError, match=r"stack.blocks.1.attention is being recorded already"):
            record_attention(model).__enter__()
    tokens, cu_seqlens = model.pack([random_tokens(1, 4)[0]])
    with pytest.raises(ValueError, match="packed sequences have no one grid"), record_attention(model):
        model(tokens, cu_seqlens=cu_seqlens)
