"""GELU in every world, by erf and by tanh: values, gradients, tails, strides, errors."""

import math

import gelu_fit
import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_rounded, check_op, every_value
from torch import Tensor

from fusedformer import gelu
from fusedformer.kernels import emulation

pytestmark = pytest.mark.op("gelu")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
APPROXIMATIONS = ["none", "tanh"]
SIZES = [1, 7, 8, 1000, 4097]


def make_input(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(shape, generator=generator)).to(world.device, dtype)


def check(x: Tensor, approximate: str) -> None:
    check_op(lambda x: gelu(x, approximate), lambda x: F.gelu(x, approximate=approximate), [x])


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradient_are_within_budget(world: World, size: int, dtype: torch.dtype, approximate: str) -> None:
    check(make_input(world, (size,), dtype), approximate)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 30), max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
    approximate=st.sampled_from(APPROXIMATIONS),
)
def test_any_shape_emulated(shape: tuple[int, ...], dtype: torch.dtype, approximate: str) -> None:
    with emulated_world("gelu") as world:
        check(make_input(world, shape, dtype), approximate)


# Relative to Phi(x): the largest error of the polynomial, or of fp32 exponents where there is none.
GATE_ERRORS = {
    ("none", torch.bfloat16): 5.2e-4,
    ("none", torch.float16): 2.7e-5,
    ("tanh", torch.bfloat16): 4e-5,
    ("tanh", torch.float16): 1e-5,
}


@pytest.mark.parametrize(("approximate", "dtype"), GATE_ERRORS)
def test_every_number(world: World, approximate: str, dtype: torch.dtype) -> None:
    """Rounded once, of a value that is exact but for the error of the gate: in tails and subnormals too."""
    x = every_value(dtype)
    near = x.double().clamp(-100, 100)
    gate, gate_slope = exact_gate(near, approximate)
    y, slope = near * gate, gate + near * gate_slope
    y = torch.where(x > 100, x.double(), y)
    leaf = x.to(world.device).requires_grad_()
    out = gelu(leaf, approximate)
    (dx,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    gate_error = GATE_ERRORS[approximate, dtype] * torch.minimum(gate, 1 - gate).clamp(min=0)
    # PyTorch's own gates are differences of numbers near 1, which leaves fp32 rounding errors in the tail.
    plain, flushed = (0.0, 0.0) if world.is_device_code else (1e-6, torch.finfo(dtype).smallest_normal)
    gate_error = (gate_error + plain).nan_to_num()
    error = near.abs().nan_to_num() * gate_error + flushed
    assert_rounded(out.detach(), y, before=error + 1e-6 * y.abs())
    assert_rounded(dx, slope, before=error + gate_error + 1e-6 * slope.abs())


def exact_gate(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """Phi(x) and its derivative, of float64, with all digits in the lower tail."""
    if approximate == "none":
        return torch.special.erfc(-x / math.sqrt(2)) / 2, torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    scale = 2 * math.sqrt(2 / math.pi)
    v, v_slope = scale * (x + 0.044715 * x**3), scale * (1 + 3 * 0.044715 * x**2)
    return torch.sigmoid(v), torch.sigmoid(v) * torch.sigmoid(-v) * v_slope


@pytest.mark.parametrize("dtype", ["__nv_bfloat16", "__half"])
def test_the_polynomials_are_the_best(dtype: str) -> None:
    """As good as a fit made anew, to the rounding of their coefficients to fp32."""
    farthest, coefficients = gelu_fit.shipped(dtype)
    best = gelu_fit.largest_error(gelu_fit.fit(farthest), farthest)
    assert gelu_fit.largest_error(coefficients, farthest) <= 1.02 * best
    approximate = ("none", {"__nv_bfloat16": torch.bfloat16, "__half": torch.float16}[dtype])
    assert best <= GATE_ERRORS[approximate]


@pytest.mark.parametrize("size", [1, 64])  # ATen computes a vector otherwise than a single number
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_tails(world: World, approximate: str, dtype: torch.dtype, size: int) -> None:
    """To infinity: 0 with gradient 0 below, x with gradient 1 above."""
    if dtype == torch.float64 and world.is_device_code:
        pytest.skip("float64 is computed by PyTorch alone")
    largest = torch.finfo(dtype).max
    for value in (40.0, 6e4, 1e20, 1.8e38, largest, torch.inf):
        if value > largest and value != torch.inf:
            continue
        for sign in (-1, 1):
            x = torch.full((size,), sign * value, dtype=dtype, device=world.device, requires_grad=True)
            y = gelu(x, approximate)
            (dx,) = torch.autograd.grad(y.sum(), x)
            assert torch.equal(y, torch.zeros_like(y) if sign < 0 else x), f"gelu({sign * value}) is {y[0].item()}"
            assert torch.equal(dx, torch.full_like(x, sign > 0)), f"gelu'({sign * value}) is {dx[0].item()}"


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    storage = make_input(world, (6, 160), torch.bfloat16)
    check(storage.flatten()[offset : offset + 600], "none")
    check(storage[:, offset : offset + 64], "tanh")
    check(storage.t(), "none")


def test_nan_stays_in_its_place(world: World) -> None:
    x = make_input(world, (100,), torch.float32)
    x[7] = torch.nan
    assert gelu(x).isnan().nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_double_backward(approximate: str) -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gelu(x, approximate), (x,))
    assert torch.autograd.gradgradcheck(lambda x: gelu(x, approximate), (x,))


def test_opcheck(world: World) -> None:
    x = make_input(world, (4, 16), torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.fusedformer.gelu_fwd.default, (x, True))
    torch.library.opcheck(torch.ops.fusedformer.gelu_bwd.default, (x.detach().clone().requires_grad_(), x, False))


def test_compiles_without_a_graph_break(world: World) -> None:
    x = make_input(world, (4, 16), torch.float32)
    compiled = torch.compile(gelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), gelu(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"approximate is 'sigmoid', expected one of \('none', 'tanh'\)"):
        gelu(torch.ones(2), "sigmoid")
    with pytest.raises(ValueError, match="x is int64"):
        gelu(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x is int, expected a torch.Tensor"):
        gelu(1)  # type: ignore[arg-type]
    with emulation.emulated(), pytest.raises(ValueError, match="x is float64"):
        gelu(torch.ones(2, dtype=torch.float64))
