"""LayerNorm in every world: values, gradients, shapes, strides, determinism, errors."""

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check_op
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusedformer import layer_norm
from fusedformer.kernels import emulation

pytestmark = pytest.mark.op("layer_norm")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One vector, below and above a warp, odd lengths, and lengths past what one block covers in a single step.
LENGTHS = [1, 2, 7, 8, 33, 127, 1000, 1024, 4097]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def make_inputs(world: World, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2 + 0.5
    weight = 1 + 0.1 * torch.randn(shape[-1], generator=generator)
    bias = torch.randn(shape[-1], generator=generator)
    return [tensor.to(world.device, dtype) for tensor in (x, weight, bias)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_gradients_are_within_budget(world: World, length: int, dtype: torch.dtype) -> None:
    check_op(layer_norm, plain, make_inputs(world, (5, length), dtype), names=["dx", "dweight", "dbias"])


@pytest.mark.parametrize("length", [16384, 65535, 65536])
def test_long_rows(world: World, length: int) -> None:
    check_op(layer_norm, plain, make_inputs(world, (2, length), torch.bfloat16), names=["dx", "dweight", "dbias"])


def test_weight_gradient_over_many_rows(world: World) -> None:
    """More rows than one block's share, so that the second stage of the reduction has work."""
    check_op(layer_norm, plain, make_inputs(world, (1037, 24), torch.float32), names=["dx", "dweight", "dbias"])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), dtype=st.sampled_from(DTYPES))
def test_any_shape_emulated(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with emulated_world("layer_norm") as world:
        check_op(layer_norm, plain, make_inputs(world, shape, dtype))


def test_without_weight_or_bias(world: World) -> None:
    x, weight, bias = make_inputs(world, (4, 50), torch.float32)
    check_op(layer_norm, lambda x: F.layer_norm(x, (50,)), [x])
    check_op(layer_norm, lambda x, w: F.layer_norm(x, (50,), w), [x, weight])
    check_op(lambda x, b: layer_norm(x, None, b), lambda x, b: F.layer_norm(x, (50,), None, b), [x, bias])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_with_half_input(world: World, dtype: torch.dtype) -> None:
    x, weight, bias = make_inputs(world, (6, 96), dtype)
    check_op(layer_norm, plain, [x, weight.float(), bias.float()], names=["dx", "dweight", "dbias"])


def test_half_parameters_with_float32_input(world: World) -> None:
    x, weight, bias = make_inputs(world, (6, 96), torch.float32)
    weight = weight.bfloat16().requires_grad_()
    y = layer_norm(x, weight, bias)
    y.sum().backward()
    torch.testing.assert_close(y, F.layer_norm(x, (96,), weight.float(), bias))
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_large_mean_keeps_its_digits(world: World) -> None:
    """E[x^2] - E[x]^2 would lose everything here."""
    x, weight, bias = make_inputs(world, (3, 1024), torch.float32)
    check_op(layer_norm, plain, [x + 3000.0, weight, bias], names=["dx", "dweight", "dbias"])


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    storage, weight, bias = make_inputs(world, (6, 160), torch.bfloat16)
    unaligned = storage.flatten()[offset : offset + 6 * 100].view(6, 100)
    check_op(layer_norm, plain, [unaligned, weight[:100], bias[offset : offset + 100]])
    check_op(layer_norm, plain, [storage[:, offset : offset + 64], weight[:64], bias[:64]])
    check_op(layer_norm, plain, [storage.t(), weight[:6], bias[:6]])
    check_op(layer_norm, plain, [storage[:1].expand(4, -1), weight, bias])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (3, 0), (0, 0)])
def test_empty(world: World, shape: tuple[int, ...]) -> None:
    x, weight, bias = (t.requires_grad_() for t in make_inputs(world, shape, torch.float32))
    y = layer_norm(x, weight, bias)
    assert y.shape == shape
    y.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight))


def test_nan_stays_in_its_row(world: World) -> None:
    x, weight, bias = make_inputs(world, (5, 200), torch.float32)
    clean = layer_norm(x, weight, bias)
    x[2, 7] = torch.nan
    y = layer_norm(x, weight, bias)
    assert y[2].isnan().all()
    torch.testing.assert_close(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]], rtol=0, atol=0)


def test_same_bits_again_and_in_another_batch(world: World) -> None:
    x, weight, bias = make_inputs(world, (70, 333), torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    runs = []
    for _ in range(2):
        y = layer_norm(*leaves)
        runs.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
    assert torch.equal(layer_norm(x[31:32], weight, bias), runs[0][0][31:32])


def test_double_backward() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in [(3, 6), (6,), (6,)]
    )
    assert torch.autograd.gradcheck(layer_norm, (x, weight, bias))
    assert torch.autograd.gradgradcheck(layer_norm, (x, weight, bias))
    assert torch.autograd.gradgradcheck(layer_norm, (x,))


class Calls(TorchDispatchMode):
    """Notes every call of an op."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, list[tuple[object, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.of.setdefault(str(func).split(".")[1], []).append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True), (False, False)])
def test_frozen_parameters_cost_nothing(world: World, trained: tuple[bool, bool]) -> None:
    x, weight, bias = make_inputs(world, (4, 50), torch.float32)
    x.requires_grad_()
    weight.requires_grad_(trained[0])
    bias.requires_grad_(trained[1])
    leaves = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
    expected = torch.autograd.grad(plain(x, weight, bias).square().sum(), leaves)
    with Calls() as calls:
        y = layer_norm(x, weight, bias).square().sum()
        got = torch.autograd.grad(y, leaves)
    assert calls.of["layer_norm_bwd"][0][-2:] == trained
    assert "zeros" not in calls.of, "no gradient is made up for mean and rstd"
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_opcheck(world: World) -> None:
    x, weight, bias = make_inputs(world, (4, 3, 16), torch.float32)
    ops = torch.ops.fusedformer
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(ops.layer_norm_fwd.default, (*leaves, 1e-5))
    y, mean, rstd = ops.layer_norm_fwd(*leaves, 1e-5)
    torch.library.opcheck(ops.layer_norm_bwd.default, (y.detach(), x, weight, mean, rstd, True, True))


def test_compiles_without_a_graph_break(world: World) -> None:
    inputs = make_inputs(world, (4, 16), torch.float32)
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), layer_norm(*inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(()),), r"no dimension to normalise"),
        ((torch.ones(2, 8), torch.ones(7)), r"weight has shape \(7,\), x has 8 features"),
        ((torch.ones(2, 8), torch.ones(8), torch.ones(2, 8)), r"bias has shape \(2, 8\)"),
        ((torch.ones(2, 8, dtype=torch.int32),), r"x is int32"),
        ((torch.ones(2, 8), torch.ones(8, device="meta")), r"x is on cpu, weight is on meta"),
        (([1.0, 2.0],), r"x is list, expected a torch.Tensor"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_norm(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [-1.0, torch.nan, torch.inf, "a", None])
def test_bad_eps(eps: object) -> None:
    with pytest.raises(ValueError, match=f"eps is {eps!r}, expected a finite number >= 0"):
        layer_norm(torch.ones(2, 8), eps=eps)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_bad_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"x is {dtype}".replace("torch.", "")):
        layer_norm(torch.ones(2, 8).to(dtype))
    with emulation.emulated(), pytest.raises(ValueError, match="x is float64"):
        layer_norm(torch.ones(2, 8, dtype=torch.float64))
