"""The ops under the transforms of torch.func and in forward mode, against PyTorch's own in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import World
from torch import Tensor, func
from torch.autograd import forward_ad

import fusedformer
from fusedformer import (
    add_layer_norm,
    add_rms_norm,
    bias_gelu,
    bias_relu,
    cross_entropy,
    geglu,
    gelu,
    layer_norm,
    log_softmax,
    rms_norm,
    softmax,
    swiglu,
)

Function = Callable[[Tensor], Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, BIAS, TANGENT = randn(5, seed=1), randn(5, seed=2), randn(3, 5, seed=3)

OPS: dict[str, tuple[Function, Function]] = {
    "gelu": (gelu, F.gelu),
    "gelu-tanh": (lambda x: gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "bias_gelu": (lambda x: bias_gelu(x, BIAS), lambda x: F.gelu(x + BIAS)),
    "bias_gelu-of-bias": (
        lambda b: bias_gelu(TANGENT, b.flatten()[:5], approximate="tanh"),
        lambda b: F.gelu(TANGENT + b.flatten()[:5], approximate="tanh"),
    ),
    "bias_relu": (lambda x: bias_relu(x, BIAS), lambda x: F.relu(x + BIAS)),
    "geglu": (lambda x: geglu(x, 1 + x.sin()), lambda x: F.gelu(x) * (1 + x.sin())),
    "swiglu-of-halves": (
        lambda x: swiglu(torch.cat((x, x.sin()), -1)),
        lambda x: F.silu(x) * x.sin(),
    ),
    "softmax": (softmax, lambda x: F.softmax(x, -1)),
    "softmax-dim-0": (lambda x: softmax(x, 0), lambda x: F.softmax(x, 0)),
    "log_softmax": (log_softmax, lambda x: F.log_softmax(x, -1)),
    "softmax-masked": (
        lambda x: softmax(x, scale=0.5, mask=BIAS),
        lambda x: F.softmax(0.5 * x + BIAS, -1),
    ),
    "layer_norm": (lambda x: layer_norm(x, WEIGHT, BIAS), lambda x: F.layer_norm(x, (5,), WEIGHT, BIAS)),
    "rms_norm": (lambda x: rms_norm(x, WEIGHT), lambda x: F.rms_norm(x, (5,), WEIGHT)),
    "add_layer_norm": (
        lambda x: torch.add(*add_layer_norm(x, x.sin(), WEIGHT, BIAS)),
        lambda x: F.layer_norm(x + x.sin(), (5,), WEIGHT, BIAS) + x + x.sin(),
    ),
    "add_rms_norm": (lambda x: add_rms_norm(x, x.sin(), WEIGHT)[0], lambda x: F.rms_norm(x + x.sin(), (5,), WEIGHT)),
    "layer_norm-of-weight": (
        lambda w: layer_norm(TANGENT, w.flatten()[:5], BIAS),
        lambda w: F.layer_norm(TANGENT, (5,), w.flatten()[:5], BIAS),
    ),
}

TARGET = torch.tensor(3)


def z_losses(x: Tensor) -> Tensor:
    loss = cross_entropy(x, TARGET.expand(x.shape[:-1]), weight=WEIGHT.abs(), z_loss=0.1, reduction="none")
    return loss.unsqueeze(-1)


def torch_z_losses(x: Tensor) -> Tensor:
    # By its definition: F.cross_entropy would have classes in another dimension.
    lse = x.logsumexp(-1, keepdim=True)
    return WEIGHT[3].abs() * (lse - x[..., 3:4]) + 0.1 * lse.square()


OPS["cross_entropy"] = (z_losses, torch_z_losses)


def swiglu_of_itself(x: Tensor) -> Tensor:
    return swiglu(x, x)


def scalar(f: Function) -> Function:
    return lambda x: f(x).sin().sum()


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "jvp": lambda f, x: func.jvp(f, (x,), (TANGENT,))[1],
    "grad": lambda f, x: func.grad(scalar(f))(x),
    "grad-of-grad": lambda f, x: func.grad(scalar(func.grad(scalar(f))))(x),
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "hessian": lambda f, x: func.hessian(scalar(f))(x),
    "vmap": lambda f, x: func.vmap(f)(x),
    "vmap-of-vmap": lambda f, x: func.vmap(func.vmap(f))(x.expand(2, 3, 5)),
    "vmap-of-grad": lambda f, x: func.vmap(func.grad(scalar(f)))(x),
    "grad-of-vmap": lambda f, x: func.grad(lambda x: scalar(func.vmap(f))(x))(x),
    "constant-in-grad": lambda f, x: func.grad(lambda y: (y * f(x)).sum())(x),
    "backward-of-vmap": lambda f, x: torch.autograd.grad(func.vmap(f)(x.requires_grad_()).sin().sum(), x)[0],
    "batched-backward": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", OPS)
def test_transform(op: str, transform: str) -> None:
    ours, theirs = (TRANSFORMS[transform](f, randn(3, 5)) for f in OPS[op])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode(op: str) -> None:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(randn(3, 5), TANGENT)
        ours, theirs = (forward_ad.unpack_dual(f(x)).tangent for f in OPS[op])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_of_every_mode(op: str) -> None:
    f, x = OPS[op][0], randn(3, 5).requires_grad_()
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, (x,), **modes)
    assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True)


def test_vmap_runs_the_device_code(world: World) -> None:
    """Where rows are independent, the batch is another leading dimension of one call."""
    x = randn(4, 3, 5).to(world.device, torch.float32)
    for op in (gelu, swiglu_of_itself, softmax):
        assert torch.equal(torch.vmap(op, 1)(x), op(x.movedim(1, 0)))


def test_an_op_without_a_definition_refuses() -> None:
    """Rather than to return zero tangents."""
    library = fusedformer.kernels.library
    library.define("refuses(Tensor x) -> Tensor", fallback=torch.clone, fake=torch.empty_like)
    library.differentiate("refuses", lambda ctx, dy: dy, lambda ctx, inputs, output: None)
    refuses = torch.ops.fusedformer.refuses
    x = randn(3).requires_grad_()
    assert torch.equal(torch.autograd.grad(refuses(x).sum(), x)[0], torch.ones_like(x))
    with pytest.raises(NotImplementedError, match="fusedformer::refuses has no forward-mode derivative"):
        func.jvp(refuses, (x,), (x,))
    with pytest.raises(NotImplementedError, match=r"no torch\.func transforms"):
        func.grad(lambda x: refuses(x).sum())(x)
