"""Positions of every kind: held against their formulas, the same padded, packed, cached or alone."""

import math
from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Encoder, TransformerConfig
from fusedformer.transformer.positions import (
    Placement,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    alibi_slopes,
    audio_positions,
    frequencies,
    place_packed,
)

KINDS = ["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]
SIZES: dict[str, Any] = {"d_model": 32, "n_layers": 1, "n_heads": 4, "d_ff": 48}


def rotated(x: Tensor, positions: Tensor, **fields: Any) -> Tensor:
    rotary = Rotary(TransformerConfig(**SIZES, positions="rotary", **fields))
    return rotary(x.flatten(2), Placement(positions)).turn(x)


def test_sinusoidal_is_the_formula_of_the_paper() -> None:
    x = torch.zeros(1, 9, 7, dtype=torch.float64)
    added = SinusoidalPositions()(x, Placement(torch.arange(9)))[0]
    for position in range(9):
        for i in range(7):
            angle = position / 10000 ** ((i - i % 2) / 7)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert added[position, i].item() == pytest.approx(expected, abs=1e-12)


def test_audio_positions_are_the_formula_of_the_published_code() -> None:
    table = audio_positions(5, torch.zeros(1, 1, 8))
    for position in range(5):
        for i in range(4):
            angle = position * math.exp(-math.log(10000) * i / 3)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 4])
def test_rotary_turns_pairs_as_complex_numbers(interleaved: bool, rotary_dim: int) -> None:
    x = torch.randn(2, 6, 4, 8, dtype=torch.float64)
    turned = rotated(x, torch.arange(6), rotary_dim=rotary_dim, rotary_interleaved=interleaved, rotary_base=50.0)
    n = rotary_dim or 8
    for i in range(n // 2):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, n // 2 + i)
        angle = torch.arange(6) * 50.0 ** (-2 * i / n)
        turn = torch.polar(torch.ones(6, dtype=torch.float64), angle.double())[None, :, None]
        expected = torch.complex(x[..., first], x[..., second]) * turn
        torch.testing.assert_close(torch.complex(turned[..., first], turned[..., second]), expected)
    assert torch.equal(turned[..., n:], x[..., n:])


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 4, 8, dtype=torch.float64)
    for shift in (0, 1, 100):
        first, second = (rotated(x, torch.tensor([p + shift])) for x, p in ((q, 7), (k, 3)))
        if shift == 0:
            expected = (first * second).sum(-1)
        torch.testing.assert_close((first * second).sum(-1), expected)


def test_rotary_in_half_precision_is_computed_in_float32() -> None:
    x = torch.randn(1, 50, 4, 8)
    exact = rotated(x.bfloat16().double(), torch.arange(50))
    turned = rotated(x.bfloat16(), torch.arange(50))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, exact.bfloat16(), rtol=2**-7, atol=2**-9)


def test_linear_scaling_divides_positions() -> None:
    x = torch.randn(1, 9, 4, 8, dtype=torch.float64)
    scaled = rotated(x, torch.arange(9), rotary_scaling="linear", rotary_factor=4.0)
    torch.testing.assert_close(scaled, rotated(x, torch.arange(9) / 4))


def test_llama3_scaling_changes_slow_frequencies_alone() -> None:
    fields: dict[str, Any] = {"rotary_scaling": "llama3", "rotary_factor": 8.0, "rotary_original_len": 64}
    fields |= {"rotary_low_freq_factor": 1.0, "rotary_high_freq_factor": 4.0, "rotary_base": 1000.0}
    rotary = Rotary(TransformerConfig(**SIZES, positions="rotary", **fields))
    x = torch.zeros(1, 2, 32, dtype=torch.float64)
    angles = rotary(x, Placement(torch.tensor([0, 1]))).sin[0, 1, 0].asin()
    plain = frequencies(8, 1000.0, x)
    turns = 64 * plain / (2 * math.pi)
    assert (turns > 4).any()
    assert (turns < 1).any()
    assert ((turns > 1) & (turns < 4)).any()
    for angle, frequency, n_turns in zip(angles[1:].tolist(), plain[1:].tolist(), turns[1:].tolist()):
        blend = min(max((n_turns - 1) / 3, 0), 1)
        assert angle == pytest.approx(frequency * blend + frequency / 8 * (1 - blend))


def test_alibi_slopes_of_the_paper() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    assert alibi_slopes(8, like).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(3, like).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]
    assert alibi_slopes(7, like).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3, 2.0**-5]
    assert [alibi_slopes(n, like)[0].item() for n in (1, 2, 16)] == pytest.approx([2.0**-8, 2.0**-4, 2.0**-0.5])


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets(causal: bool) -> None:
    """Single distances first, then ever longer ranges up to the largest; both directions apart, unless causal."""
    config = TransformerConfig(**SIZES, positions="relative", relative_buckets=16, relative_max_distance=40)
    bias = RelativeBias(config, causal=causal)
    n = 16 if causal else 8
    behind = bias.bucket(-torch.arange(100)).tolist()
    assert behind[: n // 2] == list(range(n // 2))
    assert behind == sorted(behind)
    assert set(behind) == set(range(n))
    assert behind[39] <= n - 1 == behind[40] == behind[99]
    ahead = bias.bucket(torch.arange(1, 100)).tolist()
    assert ahead == ([0] * 99 if causal else [8 + bucket for bucket in behind[1:]])


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [1, 2, 5, 6, 8]], ids=["right", "left", "holes"])
@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_padding_changes_nothing(kind: str, positions: str, places: list[int]) -> None:
    model = make_model(kind, positions=positions)
    tokens, padded, mask = random_tokens(1, 5), random_tokens(1, 9), torch.zeros(1, 9, dtype=torch.bool)
    padded[:, places], mask[:, places] = tokens, True
    torch.testing.assert_close(model(padded, mask)[:, places], model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", KINDS)
def test_cached_tokens_come_out_as_in_one_pass(positions: str) -> None:
    model = make_model("decoder", positions=positions)
    tokens = random_tokens(2, 9)
    caches = model.stack.new_caches(9)
    parts = [model.hidden(part, None, caches) for part in tokens.split([4, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", KINDS)
def test_the_order_of_tokens_matters_unless_there_are_no_positions(positions: str) -> None:
    model = make_model("encoder", positions=positions)
    tokens = random_tokens(1, 6)
    order = torch.tensor([1, 0, 2, 3, 4, 5])  # its own inverse, and no mirror image, which ALiBi does not see
    same = torch.allclose(model(tokens[:, order])[:, order], model(tokens), atol=1e-5)
    assert same == (positions == "none")


@pytest.mark.parametrize("positions", [kind for kind in KINDS if kind != "relative"])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_packed_is_padded_is_single(pooling: str, positions: str) -> None:
    model = make_model("encoder", positions=positions, pooling=pooling, n_kv_heads=1)
    rows = [random_tokens(1, length)[0] for length in (3, 12, 1, 7)]
    tokens, cu_seqlens = Encoder.pack(rows)
    assert cu_seqlens.tolist() == [0, 3, 15, 16, 23]
    packed, embedded = model(tokens, cu_seqlens=cu_seqlens), model.embed(tokens, cu_seqlens=cu_seqlens)
    mask = torch.arange(12) < torch.tensor([[3], [12], [1], [7]])
    padded = torch.zeros(4, 12, dtype=torch.long).masked_scatter(mask, tokens)
    torch.testing.assert_close(packed, model(padded, mask)[mask], rtol=0, atol=2e-6)
    torch.testing.assert_close(embedded, model.embed(padded, mask), rtol=0, atol=2e-6)
    for row, alone, vector in zip(rows, packed.split([3, 12, 1, 7]), embedded, strict=True):
        torch.testing.assert_close(alone, model(row[None])[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(vector, model.embed(row[None])[0], rtol=0, atol=2e-6)


def test_packed_token_types_and_gradients() -> None:
    model = make_model("encoder")
    tokens, cu_seqlens = Encoder.pack([random_tokens(1, length)[0] for length in (4, 6)])
    types = (tokens > 9).long()
    packed = model(tokens, token_type_ids=types, cu_seqlens=cu_seqlens)
    alone = [model(t[None], token_type_ids=s[None])[0] for t, s in zip(tokens.split([4, 6]), types.split([4, 6]))]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=2e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(packed.square().mean(), parameters)
    theirs = torch.autograd.grad(torch.cat(alone).square().mean(), parameters)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_an_empty_packed_sequence_gives_zeros() -> None:
    for pooling in ("class", "mean"):
        model = make_model("encoder", pooling=pooling)
        tokens, cu_seqlens = Encoder.pack([random_tokens(1, 4)[0], torch.zeros(0, dtype=torch.long)])
        vectors = model.embed(tokens, cu_seqlens=cu_seqlens)
        assert vectors[0].norm().item() == pytest.approx(1)
        assert (vectors[1] == 0).all()


def test_bad_packing() -> None:
    model = make_model("encoder")
    tokens = random_tokens(1, 6)[0]
    for starts, message in [
        ([0, 3, 5], r"cu_seqlens must rise from 0 to the 6 tokens, got \[0, 3, 5\]"),
        ([0, 4, 3, 6], r"cu_seqlens must rise from 0 to the 6 tokens, got \[0, 4, 3, 6\]"),
        ([0], r"cu_seqlens must be int32 of shape \(B \+ 1,\), B at least 1, got torch.int32 of \(1,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(tokens, cu_seqlens=torch.tensor(starts, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cu_seqlens must be int32 .* got torch.int64 of \(2,\)"):
        model(tokens, cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="a sequence of 13 positions is longer than max_seq_len 12"):
        place_packed(torch.zeros(1, 13, 4), torch.tensor([0, 13], dtype=torch.int32), 12)
    packed = {"cu_seqlens": torch.tensor([0, 6], dtype=torch.int32)}
    with pytest.raises(ValueError, match="attention_mask and cu_seqlens were given"):
        model(tokens, torch.ones(6, dtype=torch.bool), **packed)
    with pytest.raises(ValueError, match=r"packed tokens must be of shape \(N,\), got \(1, 6\)"):
        model(tokens[None], **packed)
    with pytest.raises(ValueError, match="packed sequences cannot have relative positions"):
        make_model("encoder", positions="relative")(tokens, **packed)
    with pytest.raises(ValueError, match=r"each of shape \(S,\), got \[\(1, 6\)\]"):
        Encoder.pack([tokens[None]])
