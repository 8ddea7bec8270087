"""log_softmax in every world: values, gradients, shapes, strides, special values, errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import World
from oracle import check_op
from torch import Tensor

from fusedformer import log_softmax, softmax

pytestmark = pytest.mark.op("log_softmax")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 2, 7, 8, 33, 127, 1000, 4097, 65_536]


def plain(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=-1)


def make_input(world: World, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(shape, generator=generator)).to(world.device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_gradient_are_within_budget(world: World, length: int, dtype: torch.dtype) -> None:
    check_op(log_softmax, plain, [make_input(world, (5 if length < 5000 else 2, length), dtype)])


@pytest.mark.parametrize("dim", [0, 1, -2, 2])
def test_any_dimension(world: World, dim: int) -> None:
    x = make_input(world, (4, 9, 17), torch.float32)
    check_op(lambda x: log_softmax(x, dim), lambda x: F.log_softmax(x, dim), [x])


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    storage = make_input(world, (6, 160), torch.bfloat16)
    check_op(log_softmax, plain, [storage.flatten()[offset : offset + 600].view(6, 100)])
    check_op(log_softmax, plain, [storage[:, offset : offset + 64]])
    check_op(log_softmax, plain, [storage.t()])


@pytest.mark.parametrize("length", [5, 40, 3000])
def test_special_values_stay_in_their_row(world: World, length: int) -> None:
    x = make_input(world, (6, length), torch.float32)
    clean = log_softmax(x)
    x[1] = -torch.inf
    x[2, 3] = torch.nan
    x[3, 1] = -torch.inf
    x[4, 2] = torch.inf
    x.requires_grad_()
    y = log_softmax(x)
    (dx,) = torch.autograd.grad(y[:, 0].sum(), x)
    torch.testing.assert_close(y[[1, 3]], softmax(x[[1, 3]]).log())
    assert y[2].isnan().all()
    assert y[4].isnan().all()
    assert dx[[0, 1, 3, 5]].isfinite().all()
    torch.testing.assert_close(y[[0, 5]], clean[[0, 5]], rtol=0, atol=0)


def test_large_values_do_not_overflow_or_lose_digits(world: World) -> None:
    x = make_input(world, (3, 100), torch.float32)
    check_op(log_softmax, plain, [x * 1e4])
    check_op(log_softmax, plain, [x + 1e4])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (0, 0)])
def test_empty(world: World, shape: tuple[int, ...]) -> None:
    x = make_input(world, shape, torch.float32).requires_grad_()
    y = log_softmax(x)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad is not None
    assert x.grad.shape == shape


def test_same_bits_again_and_in_another_batch(world: World) -> None:
    x = make_input(world, (70, 333), torch.bfloat16)
    assert torch.equal(log_softmax(x), log_softmax(x))
    assert torch.equal(log_softmax(x[31:32]), log_softmax(x)[31:32])


def test_double_backward() -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_softmax, (x,))
    assert torch.autograd.gradgradcheck(log_softmax, (x,))


def test_opcheck(world: World) -> None:
    x = make_input(world, (4, 3, 16), torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.fusedformer.log_softmax_fwd.default, (x,))
    y = log_softmax(x).detach().requires_grad_()
    torch.library.opcheck(torch.ops.fusedformer.log_softmax_bwd.default, (x, y))


def test_compiles_without_a_graph_break(world: World) -> None:
    x = make_input(world, (4, 16), torch.float32)
    compiled = torch.compile(log_softmax, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), log_softmax(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"log_softmax: dim is 2, x has 2 dimensions: shape \(2, 8\)"):
        log_softmax(torch.ones(2, 8), 2)
    with pytest.raises(ValueError, match="log_softmax: dim is 'a', expected an int"):
        log_softmax(torch.ones(2, 8), "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="log_softmax: x is int64"):
        log_softmax(torch.ones(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="log_softmax: x is float, expected a"):
        log_softmax(1.0)  # type: ignore[arg-type]
