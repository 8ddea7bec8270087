"""Attention as an operator of PyTorch: second derivatives, opcheck, torch.compile, autocast, one output alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import DIFFERENTIABLE, Case, make_inputs, make_tensors, naive_attention
from conftest import World
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.attention.op import attention, prepare

pytestmark = pytest.mark.op("attention")


TINY = Case(4, 5, 3, heads=4, kv_heads=2, dtype=torch.float64)
EVERY = replace(TINY, batch=2, head_dim_v=2, softcap=2.0, bias="1hqk", alibi="bh", sinks=True)
DERIVED = [
    replace(TINY, causal=True),
    replace(TINY, mask="qk"),
    replace(EVERY, window=(2, 1), dropout_p=0.3),
    replace(TINY, seqlen_q=6, seqlen_k=7, packed=((2, 3), (3, 2)), alibi="bh", sinks=True, causal=True),
]


@pytest.mark.parametrize("case", DERIVED, ids=str)
def test_first_and_second_derivatives(case: Case) -> None:
    inputs = make_inputs(case, torch.device("cpu"))
    if case.bias:  # of a bias of -inf no difference can be taken
        inputs["bias"] = inputs["bias"].clamp(min=-1.0)
    leaves = {name: inputs[name].requires_grad_() for name in DIFFERENTIABLE if name in inputs}

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention(**(inputs | dict(zip(leaves, tensors))), **case.settings, return_lse=True)
        return out, lse.clamp(min=-1e3)  # nor of the -inf of a query that sees no key

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


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


COMBINED = Case(
    5, 7, 16, head_dim_v=8, window=(3, None), softcap=5.0, dropout_p=0.3, mask="qk", bias="1hqk", alibi="bh", sinks=True
)  # fmt: skip
SERVED = [
    Case(5, 7, 16, causal=True),
    COMBINED,
    Case(8, 9, 16, causal=True, alibi="bh", sinks=True, packed=((3, 4), (2, 5))),
]


def arguments_of(case: Case, device: torch.device) -> tuple[Any, ...]:
    """What `attention` hands to its op."""
    inputs = make_inputs(case, device)
    q, k, v = (x.unsqueeze(0) if case.packed else x for x in map(inputs.pop, "qkv"))
    return (q, k, v, *prepare(Call("attention"), q, k, **inputs, **case.settings))


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_opcheck(world: World, case: Case) -> None:
    arguments = arguments_of(case, world.device)

    def leaves(*values: Any) -> tuple[Any, ...]:
        # The second derivative of packed sequences reads their lengths, which cannot be traced.
        is_leaf = [isinstance(x, Tensor) and x.is_floating_point() and not case.packed for x in values]
        return tuple(x.detach().clone().requires_grad_() if leaf else x for x, leaf in zip(values, is_leaf))

    torch.library.opcheck(torch.ops.fusedformer.attention_fwd.default, leaves(*arguments))
    out, lse = torch.ops.fusedformer.attention_fwd(*arguments)
    wanted = [True, True, bool(case.bias), bool(case.alibi), case.sinks]
    rows = leaves(torch.randn_like(out), torch.randn_like(lse) if case.sinks else None)
    torch.library.opcheck(torch.ops.fusedformer.attention_bwd.default, (*rows, out, lse, wanted, *leaves(*arguments)))


def test_opcheck_of_the_slopes_gradient_alone(world: World) -> None:
    """It comes from the kernel of dq, which is not wanted then."""
    arguments = arguments_of(COMBINED, world.device)
    out, lse = torch.ops.fusedformer.attention_fwd(*arguments)
    wanted = [False, False, False, True, False]
    gradients = torch.ops.fusedformer.attention_bwd(out, None, out, lse, wanted, *arguments)
    assert [x.numel() for x in gradients] == [0, 0, 0, 0, 2, 0]
    torch.library.opcheck(
        torch.ops.fusedformer.attention_bwd.default,
        (out, None, out, lse, wanted, *arguments),
        test_utils="test_faketensor",
    )


@pytest.mark.parametrize(
    "case", [Case(5, 7, 16, causal=True), replace(COMBINED, dropout_p=0.0, window=(100, 2))], ids=str
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(world: World, dynamic: bool, case: Case) -> None:
    """One graph for all lengths if it is dynamic; PyTorch makes a first one of their first values otherwise."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter, dynamic=dynamic or None)
    for lengths in ((5, 7), (6, 9), (8, 12)):
        inputs = make_inputs(replace(case, seqlen_q=lengths[0], seqlen_k=lengths[1]), world.device)
        leaves = {name: inputs[name].requires_grad_() for name in DIFFERENTIABLE if name in inputs}
        out, eager = (function(**inputs, **case.settings) for function in (compiled, attention))
        torch.testing.assert_close(out, eager)
        grads = [torch.autograd.grad(x.square().sum(), list(leaves.values())) for x in (out, eager)]
        torch.testing.assert_close(*grads)
    assert counter.frame_count <= 2


def test_compiles_packed_sequences_with_dropout() -> None:
    case = replace(SERVED[2], dropout_p=0.3)
    inputs = make_inputs(case, torch.device("cpu"))
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs, **case.settings), attention(**inputs, **case.settings))


def test_autocast_is_that_of_pytorch(world: World) -> None:
    q, k, v = make_tensors(Case(5, 7, 16, kv_heads=2), world.device)
    with torch.autocast(world.device.type, torch.bfloat16):
        out = attention(q, k, v)
        want = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    assert out.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(out, want)
    assert torch.equal(out, attention(*(x.bfloat16() for x in (q, k, v))))
