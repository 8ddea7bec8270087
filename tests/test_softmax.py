"""Softmax in every world: values, gradients, shapes, strides, special values, errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_op
from torch import Tensor

from fusedformer import softmax
from fusedformer.kernels import emulation

pytestmark = pytest.mark.op("softmax")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 2, 7, 8, 33, 127, 1000, 1024, 4097]


def plain(x: Tensor) -> Tensor:
    return F.softmax(x, dim=-1)


def make_input(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(shape, generator=generator)).to(world.device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_gradient_are_within_budget(world: World, length: int, dtype: torch.dtype) -> None:
    check_op(softmax, plain, [make_input(world, (5, length), dtype)])


@pytest.mark.parametrize("length", [16384, 65535, 65536])
def test_long_rows(world: World, length: int) -> None:
    check_op(softmax, plain, [make_input(world, (2, length), torch.bfloat16)])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), dtype=st.sampled_from(DTYPES))
def test_any_shape_emulated(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with emulated_world("softmax") as world:
        check_op(softmax, plain, [make_input(world, shape, dtype)])


@pytest.mark.parametrize("dim", [0, 1, -2, 2])
def test_any_dimension(world: World, dim: int) -> None:
    x = make_input(world, (4, 9, 17), torch.float32)
    check_op(lambda x: softmax(x, dim), lambda x: F.softmax(x, dim), [x])


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    storage = make_input(world, (6, 160), torch.bfloat16)
    check_op(softmax, plain, [storage.flatten()[offset : offset + 600].view(6, 100)])
    check_op(softmax, plain, [storage[:, offset : offset + 64]])
    check_op(softmax, plain, [storage.t()])


@pytest.mark.parametrize("length", [5, 40, 3000])
def test_special_values_stay_in_their_row(world: World, length: int) -> None:
    x = make_input(world, (6, length), torch.float32)
    clean = softmax(x)
    x[1] = -torch.inf
    x[2, 3] = torch.nan
    x[3, 1] = -torch.inf
    x[4, 2] = torch.inf
    x.requires_grad_()
    y = softmax(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    assert torch.equal(dx[1], torch.zeros_like(y[1]))
    assert y[2].isnan().all()
    assert y[4].isnan().all()
    assert y[3, 1] == 0
    assert y[3].isfinite().all()
    assert dx[3].isfinite().all()
    torch.testing.assert_close(y[[0, 5]], clean[[0, 5]], rtol=0, atol=0)


def test_large_values_do_not_overflow(world: World) -> None:
    x = make_input(world, (3, 100), torch.float32)
    check_op(softmax, plain, [x * 1e4])
    assert softmax(torch.full((2, 10), 3e38, device=world.device)).sum().item() == pytest.approx(2)


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (0, 0)])
def test_empty(world: World, shape: tuple[int, ...]) -> None:
    x = make_input(world, shape, torch.float32).requires_grad_()
    y = softmax(x)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad is not None
    assert x.grad.shape == shape


def test_same_bits_again_and_in_another_batch(world: World) -> None:
    x = make_input(world, (70, 333), torch.bfloat16)
    assert torch.equal(softmax(x), softmax(x))
    assert torch.equal(softmax(x[31:32]), softmax(x)[31:32])


def test_double_backward() -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, (x,))
    assert torch.autograd.gradgradcheck(softmax, (x,))


def test_opcheck(world: World) -> None:
    x = make_input(world, (4, 3, 16), torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.fusedformer.softmax_fwd.default, (x,))
    torch.library.opcheck(torch.ops.fusedformer.softmax_bwd.default, (x, softmax(x).detach().requires_grad_()))


def test_compiles_without_a_graph_break(world: World) -> None:
    x = make_input(world, (4, 16), torch.float32)
    compiled = torch.compile(softmax, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), softmax(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"dim is 2, x has 2 dimensions: shape \(2, 8\)"):
        softmax(torch.ones(2, 8), 2)
    with pytest.raises(ValueError, match="dim is -1, x has 0 dimensions"):
        softmax(torch.ones(()))
    for dim in (1.0, "a", None):
        with pytest.raises(ValueError, match=f"dim is {dim!r}, expected an int"):
            softmax(torch.ones(2, 8), dim)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x is float8_e5m2"):
        softmax(torch.ones(2, 8).to(torch.float8_e5m2))
    with pytest.raises(ValueError, match="x is int64"):
        softmax(torch.ones(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x is float, expected a torch.Tensor"):
        softmax(1.0)  # type: ignore[arg-type]
    with emulation.emulated(), pytest.raises(ValueError, match="x is float64"):
        softmax(torch.ones(2, 8, dtype=torch.float64))
