"""What all architectures promise: the same in every world, gradients everywhere, learning, reproducible weights."""

import copy
from typing import Any

import pytest
import torch
from conftest import World
from models import ARCHITECTURES, loss_of, make_model, plain_pytorch
from oracle import assert_within_budget
from torch import Tensor

from fusedformer import Decoder, EncoderDecoder, TransformerConfig
from fusedformer.kernels import emulation
from fusedformer.transformer.model import Model

KINDS = list(ARCHITECTURES)
# What the configurations of `ARCHITECTURES` leave out, each choice once; one layer, since device code is emulated.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "decoder",
        {"positions": "rotary", "rotary_dim": 8, "norm": "rms", "activation": "swiglu", "bias": False},
    ),
    "alibi": (
        "decoder",
        {"positions": "alibi", "norm_position": "sandwich", "activation": "geglu", "layer_scale": 0.5},
    ),
    "t5": (
        "encoder_decoder",
        {
            "positions": "relative", "norm": "rms", "norm_position": "pre", "activation": "geglu_tanh", "bias": False,
            "scale_attention": False, "scale_tied_head": True,
        },
    ),
    "dinov2": ("vision_transformer", {"n_registers": 2, "layer_scale": 0.5}),
    "transformer": ("encoder_decoder", {"positions": "sinusoidal", "norm_position": "sandwich", "norm": "rms"}),
}  # fmt: skip


def make_variant(variant: str) -> Model:
    kind, overrides = VARIANTS[variant]
    return make_model(kind, **{"n_layers": 1, **overrides})


def loss_and_gradients(model: Model) -> list[Tensor]:
    loss = loss_of(model)
    return [t.cpu() for t in (loss.detach(), *torch.autograd.grad(loss, list(model.parameters())))]


def output_and_gradients(model: Model) -> list[Tensor]:
    """What `forward` gave, then the gradient of the loss for every parameter."""
    outputs: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, out: outputs.append(out.detach().cpu()))
    _, *gradients = loss_and_gradients(model)
    handle.remove()
    return outputs + gradients


@pytest.mark.parametrize("kind", KINDS)
def test_every_world_agrees_with_float64(world: World, kind: str) -> None:
    model = make_model(kind)
    with emulation.emulated(False):
        exact = loss_and_gradients(make_model(kind).double())
    for got, want in zip(loss_and_gradients(model.to(world.device)), exact, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_agree_with_float64_in_every_world(world: World, variant: str) -> None:
    with emulation.emulated(False):
        exact = loss_and_gradients(make_variant(variant).double())
    for got, want in zip(loss_and_gradients(make_variant(variant).to(world.device)), exact, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_within_the_error_budget(world: World, kind: str, dtype: torch.dtype) -> None:
    # Not ReLU: its derivative jumps at 0, so a rounding error there is no small error any more.
    model = make_model(kind, n_layers=1, activation="gelu").to(world.device, dtype)
    with plain_pytorch():
        exact = output_and_gradients(copy.deepcopy(model).double())
        plain = output_and_gradients(model)
    names = ["out", *(name for name, _ in model.named_parameters())]
    for name, *results in zip(names, output_and_gradients(model), exact, plain, strict=True):
        assert_within_budget(name, *results, gradient=name != "out")


@pytest.mark.parametrize("kind", [*KINDS, "llama", "t5"])
def test_compiles_as_one_graph(kind: str) -> None:
    model = make_model(kind) if kind in KINDS else make_variant(kind)
    expected = loss_and_gradients(model)
    entry = "loss" if isinstance(model, Decoder | EncoderDecoder) else "forward"
    compiled = torch.compile(getattr(model, entry), fullgraph=True, backend="aot_eager")
    setattr(model, entry, compiled)
    for got, eager in zip(loss_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(got, eager)


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_gradients_reach_every_parameter(kind: str) -> None:
    model = make_model(kind) if kind in KINDS else make_variant(kind)
    loss_of(model).backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert unreached == []


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_the_loss(kind: str, norm_position: str) -> None:
    torch.manual_seed(0)
    architecture, sizes = ARCHITECTURES[kind]
    model = architecture(TransformerConfig(**{**sizes, "norm_position": norm_position, "dropout": 0.1}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = loss_of(model).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < 0.8 * before


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_follow_the_seed(kind: str) -> None:
    architecture, sizes = ARCHITECTURES[kind]
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(architecture(TransformerConfig(**sizes)))
    first, same, other = (loss_of(model) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_initial_scale() -> None:
    architecture, sizes = ARCHITECTURES["decoder"]
    stds = {n: p.std().item() for n, p in architecture(TransformerConfig(**sizes)).named_parameters() if p.dim() == 2}
    assert stds["stack.blocks.0.feed_forward.up.weight"] == pytest.approx(0.02, rel=0.1)
    # Two blocks of two residual sublayers each: a factor of 1 / sqrt(4).
    assert stds["stack.blocks.0.feed_forward.down.weight"] == pytest.approx(0.01, rel=0.1)
    assert stds["stack.blocks.1.attention.out.weight"] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_only_in_training(kind: str) -> None:
    model = make_model(kind, dropout=0.5)
    assert not torch.equal(loss_of(model), loss_of(model))
    model.eval()
    assert torch.equal(loss_of(model), loss_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_no_biases(kind: str) -> None:
    names = [name for name, _ in make_model(kind, bias=False).named_parameters()]
    assert [name for name in names if name.endswith("bias")] == []
    assert loss_of(make_model(kind, bias=False)).isfinite()
