"""Blocks of every kind: held against torch.nn's transformers and against the formulas written out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import block_as_torch, loss_of, make_model, random_tokens, randomise
from torch import Tensor, nn

from fusedformer import Decoder, TransformerConfig
from fusedformer.transformer.blocks import Block, FeedForward, Stack, skip_at_random
from fusedformer.transformer.embeddings import TokenEmbedding
from fusedformer.transformer.positions import Placement

SIZES: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48}
PADDING = torch.arange(7) >= torch.tensor([[7], [5], [3]])  # PyTorch's masks: True is hidden
HIDDEN = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) < 0.3
HIDDEN.fill_diagonal_(False)
HIDDEN[:, 0] = False


def make_stack(norm_position: str, *, causal: bool = False, cross: bool = False) -> Stack:
    torch.manual_seed(causal + 2 * cross)
    stack = Stack(TransformerConfig(**SIZES, norm_position=norm_position), causal=causal, cross=cross)  # type: ignore[arg-type]
    randomise(stack)
    return stack


def layer_arguments(norm_position: str) -> dict[str, Any]:
    return {
        "d_model": 32, "nhead": 4, "dim_feedforward": 48, "dropout": 0.0, "activation": "gelu", "batch_first": True,
        "norm_first": norm_position == "pre",
    }  # fmt: skip


def load(theirs: Any, stack: Stack) -> None:
    for layer, block in zip(theirs.layers, stack.blocks, strict=True):
        assert isinstance(block, Block)
        layer.load_state_dict(block_as_torch(block))
    if stack.final_norm is not None:
        theirs.norm.load_state_dict(stack.final_norm.state_dict())


def as_torch(stack: Stack, norm_position: str, *, cross: bool = False) -> Any:
    """torch.nn's own TransformerEncoder or, with cross-attention, TransformerDecoder, with the stack's weights."""
    norm = None if stack.final_norm is None else nn.LayerNorm(32)
    theirs: Any
    if cross:
        theirs = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer_arguments(norm_position)), 2, norm)
    else:
        layer = nn.TransformerEncoderLayer(**layer_arguments(norm_position))
        theirs = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    load(theirs, stack)
    return theirs


def random_vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 7, 32, generator=generator), torch.randn(3, 7, 32, generator=generator)


def placed(visible_BST: Tensor) -> Placement:
    return Placement(torch.arange(7), mask=visible_BST)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_transformer_encoder(norm_position: str) -> None:
    """With a padding mask and a mask of what attends to what."""
    stack = make_stack(norm_position)
    x, _ = random_vectors()
    expected = as_torch(stack, norm_position)(x, mask=HIDDEN, src_key_padding_mask=PADDING)
    ours = stack(x, placed(~(HIDDEN | PADDING[:, None])))
    torch.testing.assert_close(ours[~PADDING], expected[~PADDING], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_transformer_decoder(norm_position: str) -> None:
    stack = make_stack(norm_position, causal=True, cross=True)
    x, context = random_vectors()
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.bool)
    theirs = as_torch(stack, norm_position, cross=True)
    expected = theirs(x, context, tgt_mask=causal, tgt_key_padding_mask=PADDING, memory_key_padding_mask=PADDING)
    memories = stack.remember(context, ~PADDING[:, None, None])
    ours = stack(x, Placement(torch.arange(7), mask=~PADDING), memories=memories)
    torch.testing.assert_close(ours[~PADDING], expected[~PADDING], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_transformer(norm_position: str) -> None:
    """Both stacks; post-norm ends without a further norm, as in the paper, where torch.nn would add one."""
    encoder, decoder = make_stack(norm_position), make_stack(norm_position, causal=True, cross=True)
    source, target = random_vectors()
    theirs = nn.Transformer(
        32, 4, batch_first=True,
        custom_encoder=as_torch(encoder, norm_position),
        custom_decoder=as_torch(decoder, norm_position, cross=True),
    )  # fmt: skip
    load(theirs.encoder, encoder)  # anew: it has drawn weights of its own
    load(theirs.decoder, decoder)
    expected = theirs(
        source, target, src_mask=HIDDEN, tgt_mask=torch.ones(7, 7, dtype=torch.bool).triu(1) | HIDDEN,
        src_key_padding_mask=PADDING, memory_key_padding_mask=PADDING,
    )  # fmt: skip
    context = encoder(source, placed(~(HIDDEN | PADDING[:, None])))
    memories = decoder.remember(context, ~PADDING[:, None, None])
    ours = decoder(target, placed(~HIDDEN.expand(3, -1, -1)), memories=memories)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "geglu": F.gelu,
    "geglu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": F.silu,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward(activation: Any, bias: bool) -> None:
    torch.manual_seed(0)
    layer = FeedForward(TransformerConfig(**SIZES, activation=activation, bias=bias))
    x = torch.randn(3, 5, 32)
    hidden = layer.up(x)
    if "glu" in activation and activation != "gelu":
        assert layer.up.weight.shape == (96, 32)
        expected = layer.down(ACTIVATIONS[activation](hidden[..., :48]) * hidden[..., 48:])
    else:
        assert layer.up.weight.shape == (48, 32)
        expected = layer.down(ACTIVATIONS[activation](hidden))
    torch.testing.assert_close(layer(x), expected)
    assert (layer.up.bias is None) == (layer.down.bias is None) == (not bias)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "geglu"])
def test_bias_and_activation_are_one_kernel_off_the_cpu(activation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = FeedForward(TransformerConfig(**SIZES, activation=activation))
    x = torch.randn(3, 5, 32)
    if layer.bias_activation is not None:
        fused = layer.bias_activation(F.linear(x, layer.up.weight), layer.up.bias)
        torch.testing.assert_close(layer.down(fused), layer(x))
        monkeypatch.setattr(layer, "activation", None)
    assert layer.to("meta")(x.to("meta")).shape == (3, 5, 32)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("norm_position", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("layer_scale", [0.0, 0.3])
def test_residual_stream(norm_position: Any, norm: Any, layer_scale: float) -> None:
    """The stack as its formulas say it, sublayer by sublayer."""
    torch.manual_seed(0)
    stack = Stack(TransformerConfig(**SIZES, norm_position=norm_position, norm=norm, layer_scale=layer_scale))
    randomise(stack)

    def sublayer(x: Tensor, function: nn.Module, residual: Any) -> Tensor:
        y = function(x if norm_position == "post" else residual.norm(x))
        y = residual.out_norm(y) if norm_position == "sandwich" else y
        x = x + (y * residual.layer_scale if layer_scale else y)
        return residual.norm(x) if norm_position == "post" else x

    x, _ = random_vectors()
    expected = x
    for block in stack.blocks:
        assert isinstance(block, Block)
        expected = sublayer(expected, block.attention, block.attention_residual)
        expected = sublayer(expected, block.feed_forward, block.feed_forward_residual)
    expected = expected if stack.final_norm is None else stack.final_norm(expected)
    torch.testing.assert_close(stack(x), expected, rtol=1e-5, atol=1e-5)


def test_layer_scale_starts_at_its_value() -> None:
    stack = Stack(TransformerConfig(**SIZES, layer_scale=0.25))
    scales = [p for name, p in stack.named_parameters() if name.endswith("layer_scale")]
    assert len(scales) == 4
    assert all((scale == 0.25).all() for scale in scales)


def test_stochastic_depth_skips_more_with_depth() -> None:
    stack = Stack(TransformerConfig(**{**SIZES, "n_layers": 5}, stochastic_depth=0.4))
    skips = [block.attention_residual.skip_p for block in stack.blocks if isinstance(block, Block)]
    assert skips == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_stochastic_depth_keeps_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(4000, 3, 2)
    kept = skip_at_random(branch, 0.25)
    assert ((kept == 0) | (kept == 1 / 0.75)).all()
    assert (kept == kept[:, :1, :1]).all()  # a sequence as a whole
    assert kept.mean().item() == pytest.approx(1, abs=0.03)


def test_stochastic_depth_only_in_training() -> None:
    model = make_model("decoder", stochastic_depth=0.5)
    assert not torch.equal(loss_of(model), loss_of(model))
    assert torch.equal(loss_of(model.eval()), loss_of(make_model("decoder")))


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder", "vision_transformer"])
def test_activation_checkpointing_changes_no_gradient(kind: str) -> None:
    """Dropout and stochastic depth are drawn once: the second forward repeats the first."""
    results = []
    for recompute in (False, True):
        model = make_model(kind, dropout=0.3, stochastic_depth=0.3, activation_checkpointing=recompute)
        calls: list[nn.Module] = []
        block = model.get_submodule("decoder.blocks.1" if kind == "encoder_decoder" else "stack.blocks.1")
        block.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(module))
        torch.manual_seed(1)
        loss = loss_of(model)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((loss, *gradients))
        assert len(calls) == 1 + recompute
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_under_autocast_the_residual_stream_stays_float32() -> None:
    model = make_model("decoder")
    tokens = random_tokens(2, 8)
    streams = []
    for block in model.stack.blocks:
        block.register_forward_hook(lambda module, args, out: streams.append(out[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens)
    assert set(streams) == {torch.float32}
    torch.testing.assert_close(logits.float(), model(tokens), rtol=0.1, atol=0.3)


def test_token_table_is_one_hot_times_matrix() -> None:
    torch.manual_seed(0)
    table = TokenEmbedding(19, 8)
    tokens = random_tokens(2, 6)
    one_hot = F.one_hot(tokens, 19).float()
    assert torch.equal(table(tokens), one_hot @ table.weight)
    wanted = torch.randn(2, 6, 8)
    (gradient,) = torch.autograd.grad((table(tokens) * wanted).sum(), table.weight)
    (as_matrix,) = torch.autograd.grad((one_hot @ table.weight * wanted).sum(), table.weight)
    torch.testing.assert_close(gradient, as_matrix)


def test_every_prefix_trains_at_once() -> None:
    """The loss of a sequence is the mean of the losses of its prefixes' next tokens."""
    model: Decoder = make_model("decoder", positions="rotary", norm="rms", activation="swiglu")
    tokens = random_tokens(1, 8)
    losses = [F.cross_entropy(model(tokens[:, :end])[:, -1], tokens[:, end]) for end in range(1, 8)]
    torch.testing.assert_close(model.loss(tokens), torch.stack(losses).mean())
