"""GELU in every world, by erf and by tanh: values, gradients, tails, strides, errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_op
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


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_every_bfloat16(world: World, approximate: str) -> None:
    """Every finite value, tails and subnormals included, each within its own ulp or the exact tail's size."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[x.isfinite()].to(world.device)
    y = gelu(x, approximate).cpu().double()
    exact = F.gelu(x.cpu().double(), approximate=approximate)
    # 2**-8 is a bfloat16 half ulp; float32 arithmetic in the tail of the gate adds at most 1e-7 of x's size.
    # A subnormal result may be flushed to 0.
    subnormal = torch.finfo(torch.bfloat16).smallest_normal
    tolerance = exact.abs() * 2**-8 + x.cpu().double().abs().clamp(max=6) * 1e-7 + subnormal
    assert ((y - exact).abs() <= tolerance).all()


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
