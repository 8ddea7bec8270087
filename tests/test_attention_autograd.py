"""Attention as an operator of PyTorch: second derivatives, opcheck, torch.compile, autograd of one output only."""

import pytest
import torch
from attention_cases import Case, make_mask, make_tensors, naive_attention
from conftest import World
from torch import Tensor

from fusedformer.kernels.attention import attention

pytestmark = pytest.mark.op("attention")


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
def test_first_and_second_derivatives(masked: bool) -> None:
    case = Case(4, 5, 3, heads=4, kv_heads=2, dtype=torch.float64, mask=(4, 5) if masked else None)
    mask = make_mask(case, torch.device("cpu"))
    tensors = [x.requires_grad_() for x in make_tensors(case, torch.device("cpu"))]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention(*tensors, causal=not masked, mask=mask, return_lse=True)
        return out, lse.clamp(min=-1e3)  # a query that sees no key has -inf, of which no difference can be taken

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_second_derivative_of_device_code(world: World) -> None:
    """The gradient's own gradient is taken through PyTorch, also where the gradient is a kernel's."""
    case = Case(6, 9, 16)
    single = [x.requires_grad_() for x in make_tensors(case, world.device)]
    double = [x.detach().cpu().double().requires_grad_() for x in single]

    def gradient_of_gradient(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        out = attention(*tensors, causal=True) if tensors is single else naive_attention(*tensors, causal=True)[0]
        grads = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad([grad.square().sum() for grad in grads], tensors)

    for got, want in zip(gradient_of_gradient(single), gradient_of_gradient(double), strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=1e-4)


def test_gradient_of_one_output_alone(world: World) -> None:
    tensors = [x.requires_grad_() for x in make_tensors(Case(20, 30, 16), world.device)]
    out, lse = attention(*tensors, return_lse=True)
    of_out = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    of_lse = torch.autograd.grad(lse.sum(), tensors, retain_graph=True)
    of_both = torch.autograd.grad(out.sum() + lse.sum(), tensors)
    for first, second, both in zip(of_out, of_lse, of_both, strict=True):
        torch.testing.assert_close(first + second, both)
    torch.testing.assert_close(of_lse[2], torch.zeros_like(of_lse[2]))


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
def test_opcheck(world: World, masked: bool) -> None:
    case = Case(5, 7, 16, mask=(5, 7) if masked else None)
    q, k, v = (x.requires_grad_() for x in make_tensors(case, world.device))
    mask = make_mask(case, world.device)
    settings = (0.25, not masked, 2)
    torch.library.opcheck(torch.ops.fusedformer.attention_fwd.default, (q, k, v, mask, *settings))
    out, lse = (x.detach() for x in torch.ops.fusedformer.attention_fwd(q, k, v, mask, *settings))
    dout, dlse = torch.randn_like(out).requires_grad_(), None if masked else torch.randn_like(lse).requires_grad_()
    arguments = (dout, dlse, q, k, v, mask, out, lse, *settings)
    torch.library.opcheck(torch.ops.fusedformer.attention_bwd.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(world: World, dynamic: bool) -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for lengths in ((5, 7), (6, 9)) if dynamic else ((5, 7),):
        tensors = [x.requires_grad_() for x in make_tensors(Case(*lengths, 16), world.device)]
        out, eager = compiled(*tensors, causal=True), attention(*tensors, causal=True)
        torch.testing.assert_close(out, eager)
        grads = torch.autograd.grad(out.sum(), tensors), torch.autograd.grad(eager.sum(), tensors)
        torch.testing.assert_close(*grads)
