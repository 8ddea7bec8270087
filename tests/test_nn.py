"""The modules are drop-ins: constructor, state_dict and values of their namesakes in torch.nn."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import World
from torch import nn

import fusedformer

PAIRS: list[tuple[str, Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = [
    ("LayerNorm", lambda: nn.LayerNorm(24), lambda: fusedformer.nn.LayerNorm(24), (3, 5, 24)),
    (
        "LayerNorm-2d",
        lambda: nn.LayerNorm((4, 6), eps=1e-3, bias=False),
        lambda: fusedformer.nn.LayerNorm((4, 6), eps=1e-3, bias=False),
        (3, 4, 6),
    ),
    (
        "LayerNorm-plain",
        lambda: nn.LayerNorm(24, elementwise_affine=False),
        lambda: fusedformer.nn.LayerNorm(24, elementwise_affine=False),
        (3, 24),
    ),
    ("RMSNorm", lambda: nn.RMSNorm(24), lambda: fusedformer.nn.RMSNorm(24), (3, 5, 24)),
    (
        "RMSNorm-2d",
        lambda: nn.RMSNorm((4, 6), eps=1e-3),
        lambda: fusedformer.nn.RMSNorm((4, 6), eps=1e-3),
        (3, 4, 6),
    ),
    (
        "RMSNorm-plain",
        lambda: nn.RMSNorm(24, elementwise_affine=False),
        lambda: fusedformer.nn.RMSNorm(24, elementwise_affine=False),
        (3, 24),
    ),
    ("Softmax", lambda: nn.Softmax(dim=1), lambda: fusedformer.nn.Softmax(dim=1), (3, 5, 24)),
    ("LogSoftmax", lambda: nn.LogSoftmax(dim=1), lambda: fusedformer.nn.LogSoftmax(dim=1), (3, 5, 24)),
    ("GELU", nn.GELU, fusedformer.nn.GELU, (3, 24)),
    ("GELU-tanh", lambda: nn.GELU("tanh"), lambda: fusedformer.nn.GELU("tanh"), (3, 24)),
]


@pytest.mark.parametrize(("make_theirs", "make_ours", "shape"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_drop_in(
    world: World,
    make_theirs: Callable[[], nn.Module],
    make_ours: Callable[[], nn.Module],
    shape: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs, ours = make_theirs().to(world.device), make_ours().to(world.device)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(world.device)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, type(theirs))
    assert ours.extra_repr() == theirs.extra_repr()

    x = torch.randn(shape, generator=generator).to(world.device)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(a), theirs(b)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_softmax_of_an_implicit_dimension(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fusedformer.nn.Softmax()(x), nn.Softmax()(x))
    torch.testing.assert_close(fusedformer.nn.LogSoftmax()(x), nn.LogSoftmax()(x))


def test_gates_of_halves() -> None:
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(fusedformer.nn.SwiGLU()(x), nn.functional.silu(gate) * up)
    for approximate in ("none", "tanh"):
        module = fusedformer.nn.GEGLU(approximate)
        torch.testing.assert_close(module(x), nn.functional.gelu(gate, approximate=approximate) * up)
        assert repr(module) == f"GEGLU(approximate={approximate!r})"
        assert not module.state_dict()
    with pytest.raises(ValueError, match="GEGLU: approximate is 'erf'"):
        fusedformer.nn.GEGLU("erf")


def test_copies_and_pickles() -> None:
    module = fusedformer.nn.LayerNorm(8)
    x = torch.randn(2, 8)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"input has shape \(3, 4, 5\)"):
        fusedformer.nn.LayerNorm((4, 6))(torch.ones(3, 4, 5))
    with pytest.raises(ValueError, match=r"RMSNorm: input has shape \(3, 5\), expected \(\*, 6\)"):
        fusedformer.nn.RMSNorm(6)(torch.ones(3, 5))
    for affine in (True, False):
        with pytest.raises(ValueError, match=r"input has shape \(3, 5\), expected \(\*, 6\)"):
            fusedformer.nn.LayerNorm(6, elementwise_affine=affine)(torch.ones(3, 5))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 4)])
def test_cross_entropy_loss(world: World, shape: tuple[int, ...]) -> None:
    """Classes are the second dimension."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(5, generator=generator)
    settings: dict[str, Any] = {"ignore_index": 2, "label_smoothing": 0.1}
    theirs = nn.CrossEntropyLoss(weight, **settings).to(world.device)
    ours = fusedformer.nn.CrossEntropyLoss(weight, **settings).to(world.device)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    x = torch.randn(shape, generator=generator).to(world.device)
    target = torch.randint(5, (*shape[:1], *shape[2:]) if len(shape) > 1 else (), generator=generator).to(world.device)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, expected = ours(a, target), theirs(b, target)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_cross_entropy_loss_refuses_what_it_does_not_do() -> None:
    with pytest.raises(ValueError, match="size_average is True, reduce is None: long deprecated, use reduction"):
        fusedformer.nn.CrossEntropyLoss(size_average=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="class probabilities are not supported"):
        fusedformer.nn.CrossEntropyLoss()(torch.ones(2, 3), torch.ones(2, 3))
