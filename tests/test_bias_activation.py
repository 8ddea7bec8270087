"""bias_gelu and bias_relu in every world: values, gradients of both inputs, strides, determinism, errors."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_op
from torch import Tensor

from fusedformer import bias_gelu, bias_relu
from fusedformer.kernels import emulation

pytestmark = pytest.mark.op("bias_activation")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Function = Callable[[Tensor, Tensor], Tensor]


def plain(activation: Callable[[Tensor], Tensor]) -> Function:
    # In float32 throughout, as the sum is defined; PyTorch alone would round it.
    return lambda x, bias: activation(x.to(wide(x)) + bias.to(wide(x))).to(x.dtype)


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
OURS: dict[str, Function] = {
    "gelu": bias_gelu,
    "gelu-tanh": partial(bias_gelu, approximate="tanh"),
    "relu": bias_relu,
}
OPS = {name: (OURS[name], plain(activation)) for name, activation in ACTIVATIONS.items()}
NAMES = ["dx", "dbias"]


def make_inputs(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = (2 * torch.randn(shape, generator=generator), torch.randn(shape[-1], generator=generator))
    return [tensor.to(world.device, dtype) for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (2, 3, 264), (4, 1000)])
@pytest.mark.parametrize("op", OPS)
def test_output_and_gradients_are_within_budget(
    world: World, op: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    check_op(*OPS[op], make_inputs(world, shape, dtype), names=NAMES)


@pytest.mark.parametrize("features", [16, 17])
def test_bias_gradient_over_many_rows(world: World, features: int) -> None:
    """More rows than one block's share, so that the second stage of the sum has work."""
    check_op(*OPS["gelu"], make_inputs(world, (1037, features), torch.float32), names=NAMES)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    op=st.sampled_from(sorted(OPS)),
)
def test_any_shape_emulated(shape: tuple[int, ...], dtype: torch.dtype, op: str) -> None:
    with emulated_world("bias_activation") as world:
        check_op(*OPS[op], make_inputs(world, shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_float32_bias_with_half_input(world: World, op: str, dtype: torch.dtype) -> None:
    x, bias = make_inputs(world, (6, 96), dtype)
    # The slope has the digits of x's dtype, and the bias's gradient no more than PyTorch's in that dtype.
    check_op(OURS[op], lambda x, bias: ACTIVATIONS[op](x + bias.to(x.dtype)), [x, bias.float()], names=NAMES)


def test_half_bias_with_another_input(world: World) -> None:
    x, bias = make_inputs(world, (6, 96), torch.float32)
    bias = bias.bfloat16().requires_grad_()
    y = bias_gelu(x, bias)
    y.sum().backward()
    torch.testing.assert_close(y, F.gelu(x + bias.float()))
    assert bias.grad is not None
    assert bias.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    storage, bias = make_inputs(world, (6, 160), torch.bfloat16)
    function, expected = OPS["gelu-tanh"]
    unaligned = storage.flatten()[offset : offset + 6 * 96].view(6, 96)
    check_op(function, expected, [unaligned, bias[:96]])
    check_op(function, expected, [storage[:, :64], bias[offset : offset + 64]])
    check_op(function, expected, [storage.t(), bias[:12:2]])
    check_op(function, expected, [storage[:1].expand(4, -1), bias])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (3, 0), (0,)])
def test_empty(world: World, shape: tuple[int, ...]) -> None:
    x, bias = (t.requires_grad_() for t in make_inputs(world, shape, torch.float32))
    y = bias_gelu(x, bias)
    assert y.shape == shape
    y.sum().backward()
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("op", OPS)
def test_special_values(world: World, op: str) -> None:
    """Infinities have their limits, NaN stays in its place, and ReLU passes no gradient where it is flat."""
    x, bias = make_inputs(world, (2, 24), torch.float32)
    x[0, :3] = torch.tensor([-torch.inf, torch.inf, torch.nan])
    x.requires_grad_()
    y = OPS[op][0](x, bias)
    assert y[0, :2].tolist() == [0.0, torch.inf]
    assert y.isnan().nonzero().tolist() == [[0, 2]]
    dy = torch.ones_like(y)
    dy[:, 5] = torch.inf if op == "relu" else 1.0
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx[0, :2].tolist() == [0.0, 1.0]
    if op == "relu":
        assert torch.equal(dx[:, 5], torch.where((x + bias)[:, 5] > 0, torch.inf, 0.0))


def test_same_bits_again(world: World) -> None:
    x, bias = (t.requires_grad_() for t in make_inputs(world, (300, 72), torch.bfloat16))
    runs = []
    for _ in range(2):
        y = bias_gelu(x, bias)
        runs.append([y, *torch.autograd.grad(y.float().square().sum(), (x, bias))])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_frozen_inputs(world: World, trained: tuple[bool, bool]) -> None:
    inputs = [t.requires_grad_(flag) for t, flag in zip(make_inputs(world, (4, 50), torch.float32), trained)]
    leaves = [t for t in inputs if t.requires_grad]
    got, expected = (torch.autograd.grad(f(*inputs).square().sum(), leaves) for f in OPS["gelu"])
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("op", OPS)
def test_double_backward(op: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in [(3, 6), (6,)]
    ]
    assert torch.autograd.gradcheck(OPS[op][0], inputs)
    assert torch.autograd.gradgradcheck(OPS[op][0], inputs)


def test_opcheck(world: World) -> None:
    x, bias = (t.requires_grad_() for t in make_inputs(world, (4, 3, 16), torch.float32))
    ops = torch.ops.fusedformer
    for activation in (0, 1, 3):
        torch.library.opcheck(ops.bias_activation_fwd.default, (x, bias, activation))
        torch.library.opcheck(ops.bias_activation_bwd.default, (x.detach().clone(), x, bias, activation, True))


def test_compiles_without_a_graph_break(world: World) -> None:
    inputs = make_inputs(world, (4, 16), torch.float32)
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), bias_gelu(*inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(()), torch.ones(1)), r"x has no dimension for a bias"),
        ((torch.ones(2, 3), torch.ones(2)), r"bias has shape \(2,\), x has 3 features"),
        ((torch.ones(2, 3), torch.ones(1, 3)), r"bias has shape \(1, 3\), x has 3 features"),
        ((torch.ones(2, 3), None), r"bias is NoneType, expected a torch.Tensor"),
        ((torch.ones(2, 3).int(), torch.ones(3)), "x is int32"),
        ((torch.ones(2, 3), torch.ones(3, device="meta")), "x is on cpu, bias is on meta"),
    ],
)
def test_bad_input(arguments: tuple[Tensor, Tensor], message: str) -> None:
    for function in (bias_gelu, bias_relu):
        with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
            function(*arguments)


def test_bad_approximation_and_dtype() -> None:
    with pytest.raises(ValueError, match=r"bias_gelu: approximate is 'erf', expected one of \('none', 'tanh'\)"):
        bias_gelu(torch.ones(2, 3), torch.ones(3), approximate="erf")
    with emulation.emulated(), pytest.raises(ValueError, match="bias is float64"):
        bias_relu(torch.ones(2, 3), torch.ones(3, dtype=torch.float64))


def test_the_kernels_refuse_what_they_cannot_read() -> None:
    with emulated_world("bias_activation"):
        x = torch.ones(2, 3)
        with pytest.raises(RuntimeError, match=r"must have shape \(3,\)"):
            torch.ops.fusedformer.bias_activation_fwd(x, torch.ones(2), 0)
        with pytest.raises(RuntimeError, match="no activation 4"):
            torch.ops.fusedformer.bias_activation_fwd(x, torch.ones(3), 4)
