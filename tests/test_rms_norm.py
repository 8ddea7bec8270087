"""RMSNorm in every world: values, gradients, shapes, strides, determinism, errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_op
from torch import Tensor

from fusedformer import rms_norm

# PyTorch says that it has no fused kernel for a weight of another dtype than x's.
pytestmark = [pytest.mark.op("rms_norm"), pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 2, 7, 8, 33, 127, 1000, 1024, 4096, 4097]


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight)


def make_inputs(world: World, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2 + 0.5
    weight = 1 + 0.1 * torch.randn(shape[-1], generator=generator)
    return [tensor.to(world.device, dtype) for tensor in (x, weight)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_gradients_are_within_budget(world: World, length: int, dtype: torch.dtype) -> None:
    check_op(rms_norm, plain, make_inputs(world, (5, length), dtype), names=["dx", "dweight"])


@pytest.mark.parametrize("length", [16384, 65535])
def test_long_rows(world: World, length: int) -> None:
    check_op(rms_norm, plain, make_inputs(world, (2, length), torch.bfloat16), names=["dx", "dweight"])


@pytest.mark.parametrize("length", [24, 23])
def test_weight_gradient_over_many_rows(world: World, length: int) -> None:
    """More rows than one team's share, where the sums over rows are made on the way and where they are not."""
    check_op(rms_norm, plain, make_inputs(world, (1037, length), torch.float32), names=["dx", "dweight"])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), dtype=st.sampled_from(DTYPES))
def test_any_shape_emulated(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with emulated_world("rms_norm") as world:
        check_op(rms_norm, plain, make_inputs(world, shape, dtype))


def test_without_weight(world: World) -> None:
    x, _ = make_inputs(world, (4, 50), torch.float32)
    check_op(rms_norm, lambda x: F.rms_norm(x, (50,)), [x])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_weight_with_half_input(world: World, dtype: torch.dtype) -> None:
    x, weight = make_inputs(world, (6, 96), dtype)
    check_op(rms_norm, plain, [x, weight.float()], names=["dx", "dweight"])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_default_eps_is_that_of_pytorch(dtype: torch.dtype) -> None:
    x = torch.full((2, 8), 1e-4, dtype=dtype)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (8,)))
    torch.testing.assert_close(rms_norm(x, eps=1e-3), F.rms_norm(x, (8,), eps=1e-3))


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    storage, weight = make_inputs(world, (6, 160), torch.bfloat16)
    unaligned = storage.flatten()[offset : offset + 6 * 100].view(6, 100)
    check_op(rms_norm, plain, [unaligned, weight[:100]])
    check_op(rms_norm, plain, [storage[:, offset : offset + 64], weight[:64]])
    check_op(rms_norm, plain, [storage.view(2, 3, 160)[:, :2, offset : offset + 64], weight[:64]])
    check_op(rms_norm, plain, [storage.t(), weight[:6]])
    check_op(rms_norm, plain, [storage[:1].expand(4, -1), weight])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (3, 0), (0, 0)])
def test_empty(world: World, shape: tuple[int, ...]) -> None:
    x, weight = (t.requires_grad_() for t in make_inputs(world, shape, torch.float32))
    y = rms_norm(x, weight)
    assert y.shape == shape
    y.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight))


def test_nan_stays_in_its_row(world: World) -> None:
    x, weight = make_inputs(world, (5, 200), torch.float32)
    clean = rms_norm(x, weight)
    x[2, 7] = torch.nan
    y = rms_norm(x, weight)
    assert y[2].isnan().all()
    torch.testing.assert_close(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]], rtol=0, atol=0)


@pytest.mark.parametrize("length", [336, 333])
def test_same_bits_again_and_in_another_batch(world: World, length: int) -> None:
    x, weight = make_inputs(world, (70, length), torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, weight)]
    runs = []
    for _ in range(2):
        y = rms_norm(*leaves)
        runs.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
    assert torch.equal(rms_norm(x[31:32], weight), runs[0][0][31:32])


def test_dx_does_not_depend_on_what_else_is_wanted(world: World) -> None:
    x, weight = make_inputs(world, (70, 336), torch.bfloat16)
    x.requires_grad_()
    (alone,) = torch.autograd.grad(rms_norm(x, weight).sum(), x)
    with_dweight, _ = torch.autograd.grad(rms_norm(x, weight.requires_grad_()).sum(), (x, weight))
    assert torch.equal(alone, with_dweight)


def test_double_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in [(3, 6), (6,)]
    )
    assert torch.autograd.gradcheck(rms_norm, (x, weight))
    assert torch.autograd.gradgradcheck(rms_norm, (x, weight))
    assert torch.autograd.gradgradcheck(rms_norm, (x,))


def test_opcheck(world: World) -> None:
    x, weight = (t.requires_grad_() for t in make_inputs(world, (4, 3, 16), torch.float32))
    ops = torch.ops.fusedformer
    torch.library.opcheck(ops.rms_norm_fwd.default, (x, weight, 1e-5))
    y, rstd = ops.rms_norm_fwd(x, weight, 1e-5)
    torch.library.opcheck(ops.rms_norm_bwd.default, (y.detach(), x, weight, rstd, True))


def test_compiles_without_a_graph_break(world: World) -> None:
    inputs = make_inputs(world, (4, 16), torch.float32)
    compiled = torch.compile(rms_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), rms_norm(*inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(()),), r"rms_norm: x has no dimension to normalise"),
        ((torch.ones(2, 8), torch.ones(7)), r"weight has shape \(7,\), x has 8 features"),
        ((torch.ones(2, 8, dtype=torch.int32),), r"x is int32"),
        ((torch.ones(2, 8), torch.ones(8, device="meta")), r"x is on cpu, weight is on meta"),
    ],
)
def test_bad_input(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm(*arguments)


@pytest.mark.parametrize("eps", [-1.0, torch.nan, torch.inf, "a"])
def test_bad_eps(eps: object) -> None:
    with pytest.raises(ValueError, match=f"eps is {eps!r}, expected a finite number >= 0"):
        rms_norm(torch.ones(2, 8), eps=eps)  # type: ignore[arg-type]
