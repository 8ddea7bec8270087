"""The encoder-decoder: equal to torch.nn with both masks, blind to the future and to padding, shifted right."""

import re
from typing import Any

import pytest
import torch
from models import assert_same_gradients, make_model, random_tokens, torch_layers
from torch import Tensor, nn

from fusedformer.transformer.positions import audio_positions

MASK = torch.arange(10) < torch.tensor([[10], [4], [1]])


def torch_logits(model: Any, encoder: nn.Module, decoder: nn.Module, source: Tensor, seen: Tensor) -> Tensor:
    length = seen.shape[1]
    table = model.token_embedding.weight
    embedded = table[source] + model.source_position_embedding.weight[: source.shape[1]]
    context = encoder(embedded, src_key_padding_mask=~MASK)
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    embedded = table[seen] + model.target_position_embedding.weight[:length]
    head = table if model.head is None else model.head.weight
    return decoder(embedded, context, tgt_mask=causal, memory_key_padding_mask=~MASK) @ head.T


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_equals_torch(norm_position: str, tie_embeddings: bool) -> None:
    model = make_model(
        "encoder_decoder", norm_position=norm_position, tie_embeddings=tie_embeddings, decoder_start_token_id=3
    )
    encoder = torch_layers(model.encoder, model.config)
    decoder = torch_layers(model.decoder, model.config, cross=True)
    source, target = random_tokens(3, 10), random_tokens(3, 7)
    seen = torch.cat([torch.full((3, 1), 3), target[:, :-1]], dim=1)
    expected = torch_logits(model, encoder, decoder, source, seen)
    logits = model(source, target, MASK)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    logits.square().mean().backward()
    expected.square().mean().backward()
    assert_same_gradients(model.encoder, encoder)
    assert_same_gradients(model.decoder, decoder)


def test_shift_right() -> None:
    model = make_model("encoder_decoder", decoder_start_token_id=5)
    assert model.shift_right(torch.tensor([[7, 8, 9]])).tolist() == [[5, 7, 8]]


def test_future_targets_do_not_change_the_past() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(2, 10), random_tokens(2, 8)
    logits = model(source, target)
    for position in range(8):
        changed = target.clone()
        changed[:, position:] = (changed[:, position:] + 1) % 19
        # The logits at a position are for the target there, and depend on the targets before it.
        torch.testing.assert_close(model(source, changed)[:, : position + 1], logits[:, : position + 1])


def test_every_source_token_matters_and_padding_does_not() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(1, 10), random_tokens(1, 5)
    mask = (torch.arange(10) < 6).unsqueeze(0)
    logits = model(source, target, mask)
    for position in range(10):
        changed = source.clone()
        changed[:, position] = (changed[:, position] + 1) % 19
        assert torch.allclose(model(changed, target, mask), logits) == (position >= 6)
    torch.testing.assert_close(model(source[:, :6], target), logits)


def test_masked_targets_do_not_count() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(3, 10), random_tokens(3, 10).flip(0)
    per_token = nn.functional.cross_entropy(model(source, target, MASK).transpose(1, 2), target, reduction="none")
    torch.testing.assert_close(model.loss(source, target, MASK, MASK), per_token[MASK].mean())
    torch.testing.assert_close(model.loss(source, target, MASK), per_token.mean())


def test_source_padding_on_the_left() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(1, 6), random_tokens(1, 5)
    padded, mask = torch.cat([random_tokens(1, 4), source], dim=1), torch.tensor([[False] * 4 + [True] * 6])
    torch.testing.assert_close(model(padded, target, mask), model(source, target), rtol=1e-5, atol=1e-5)


def test_loss_of_nothing_is_zero() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(2, 6), random_tokens(2, 4)
    for loss in (
        model.loss(source, target, target_mask=torch.zeros(2, 4, dtype=torch.bool)),
        model.loss(source[:0], target[:0]),
    ):
        loss.backward()
        assert loss == 0
    assert all((p.grad is None or (p.grad == 0).all()) for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = make_model("encoder_decoder").to(dtype)
    source, target = random_tokens(3, 10), random_tokens(3, 10).flip(0)
    loss = model.loss(source, target)
    logits = model(source, target).double().flatten(0, 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, target.flatten()).float())


def test_bad_input() -> None:
    model = make_model("encoder_decoder")
    source, target = random_tokens(2, 6), random_tokens(2, 4)
    with pytest.raises(
        ValueError, match=r"target must be int32 or int64 of shape \(B, S\).* got torch.int64 of \(4,\)"
    ):
        model(source, target[0])
    with pytest.raises(ValueError, match="target hold values from 3 to 19, outside a vocabulary of 19"):
        model.loss(source, torch.tensor([[3, 19], [3, 3]]))
    with pytest.raises(ValueError, match="a sequence of 13 positions is longer than max_seq_len 12"):
        model(source, random_tokens(2, 13))
    with pytest.raises(ValueError, match=r"the source has 2 sequences, the target 1"):
        model(source, target[:1])
    with pytest.raises(ValueError, match=r"target_mask must be bool of the tokens' shape \(2, 4\)"):
        model.loss(source, target, None, torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="target must be on cpu, where the weights are, got meta"):
        model(source, target.to("meta"))
    with pytest.raises(ValueError, match="target must be a tensor, got list"):
        model.loss(source, target.tolist(), target_mask=torch.ones(2, 4, dtype=torch.bool))


AUDIO: dict[str, Any] = {"n_mels": 5, "max_source_len": 6, "max_seq_len": 9}


def test_sound_is_convolved_and_placed() -> None:
    model = make_model("encoder_decoder", **AUDIO)
    sound = torch.randn(2, 5, 11)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits = model(sound, random_tokens(2, 4))
    assert logits.shape == (2, 4, 19)
    front = model.audio_embedding
    gelu = nn.functional.gelu
    expected = gelu(front.conv2(gelu(front.conv1(sound)))).transpose(1, 2) + audio_positions(6, seen[0])
    torch.testing.assert_close(seen[0], expected)


def test_generates_from_sound() -> None:
    model = make_model("encoder_decoder", **AUDIO)
    tokens = model.generate(torch.randn(2, 5, 12), 4, temperature=0)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (2, 4)


def test_bad_sound() -> None:
    model = make_model("encoder_decoder", **AUDIO)
    target = random_tokens(1, 3)
    for shape in [(1, 4, 6), (1, 5, 13), (1, 5, 0), (5, 6)]:
        message = rf"source must be of shape \(B, 5, 1 to 12 frames\), got {re.escape(str(shape))}"
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape), target)
    with pytest.raises(ValueError, match=r"source must be torch.float32, got torch.int64"):
        model(torch.zeros(1, 5, 6, dtype=torch.long), target)
    with pytest.raises(ValueError, match="source must be a tensor, got list"):
        model([[0.0]], target)
    with pytest.raises(ValueError, match="attention_mask was given, but sound has no padding"):
        model(torch.zeros(1, 5, 6), target, torch.ones(1, 3, dtype=torch.bool))
