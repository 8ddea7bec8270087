"""geglu and swiglu in every world, of two tensors and of halves: values, gradients, strides, errors."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_rounded, check_op, every_value
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusedformer import geglu, swiglu
from fusedformer.kernels import emulation

pytestmark = pytest.mark.op("glu")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# So many that PyTorch's own largest error, which the budget is made of, is not small by luck.
ROWS = 64


def plain(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def glu(x: Tensor, up: Tensor | None = None) -> Tensor:
        gate, up = x.chunk(2, -1) if up is None else (x, up)
        return activation(gate) * up

    return glu


OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "geglu": (geglu, plain(F.gelu)),
    "geglu-tanh": (partial(geglu, approximate="tanh"), plain(partial(F.gelu, approximate="tanh"))),
    "swiglu": (swiglu, plain(F.silu)),
}


def make_inputs(world: World, shape: tuple[int, ...], dtype: torch.dtype, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(shape, generator=generator)).to(world.device, dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 3, 4, 7, 8, 264, 1000])
@pytest.mark.parametrize("op", OPS)
def test_output_and_gradients_are_within_budget(world: World, op: str, features: int, dtype: torch.dtype) -> None:
    check_op(*OPS[op], make_inputs(world, (ROWS, 2 * features), dtype), names=["dx"])
    check_op(*OPS[op], make_inputs(world, (ROWS, features), dtype, 2), names=["dgate", "dup"])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    leading=st.lists(st.integers(0, 40), max_size=2),
    features=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES[1:]),  # a few fp32 numbers are too few for a budget
    op=st.sampled_from(sorted(OPS)),
)
def test_any_shape_emulated(leading: list[int], features: int, dtype: torch.dtype, op: str) -> None:
    with emulated_world("glu") as world:
        check_op(*OPS[op], make_inputs(world, (*leading, 2 * features), dtype))
        check_op(*OPS[op], make_inputs(world, (*leading, features), dtype, 2))


def test_many_rows(world: World) -> None:
    check_op(*OPS["swiglu"], make_inputs(world, (1037, 32), torch.float16))


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, offset: int) -> None:
    (storage,) = make_inputs(world, (6, 4, 160), torch.bfloat16)
    unaligned = storage.flatten()[offset : offset + 24 * 96].view(24, 96)
    views = [
        unaligned,
        storage[..., offset : offset + 64],
        storage[:, 1:3, :80],
        storage.transpose(0, 1),
        storage.transpose(0, 2),
        storage[:1].expand(3, -1, -1),
        storage[:, :1, ::2],
    ]
    for x in views:
        check_op(*OPS["swiglu"], [x])
    check_op(*OPS["geglu"], [storage[..., :80], storage[..., 80:]])
    check_op(*OPS["geglu"], [storage[..., 81:], storage[..., 1:80]])
    check_op(*OPS["geglu"], [storage[0].t(), storage[1].t()])


class Copies(TorchDispatchMode):
    """Counts the ops that make a tensor contiguous."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.cat, torch.ops.aten.contiguous)
        return func(*args, **(kwargs or {}))


def test_halves_are_read_and_written_in_place(world: World) -> None:
    if not world.is_device_code:
        pytest.skip("PyTorch puts the halves of a gradient together")
    (x,) = make_inputs(world, (4, 64), torch.float32)
    up, gate = x.chunk(2, -1)
    for arguments in ((x.requires_grad_(),), (gate, up)):
        with Copies() as copies:
            y = swiglu(*arguments)
            y.backward(torch.ones_like(y))
        assert copies.count == 0


def test_other_order_of_halves(world: World) -> None:
    """As in diffusers: the activated half is the second."""
    (x,) = make_inputs(world, (4, 64), torch.float32)
    up, gate = x.chunk(2, -1)
    torch.testing.assert_close(geglu(gate, up), x[:, :32] * F.gelu(x[:, 32:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_silu_of_every_number(world: World, dtype: torch.dtype) -> None:
    """SwiGLU with an `up` of 1, and its slope: rounded once, of a value exact but for fp32's exponents."""
    x = every_value(dtype)
    near = x.double().clamp(-1000, 1000)
    gate = torch.sigmoid(near)
    y, slope = torch.where(x > 1000, x.double(), near * gate), gate * (1 + near * torch.sigmoid(-near))
    leaf = x.to(world.device).requires_grad_()
    out = swiglu(leaf, torch.ones_like(leaf))
    (dx,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    flushed = 0.0 if world.is_device_code else 1e-36  # PyTorch's exponential overflows there
    error = (4e-5 * torch.minimum(gate, 1 - gate) * near.abs()).nan_to_num() + flushed
    assert_rounded(out.detach(), y, before=error + 1e-6 * y.abs())
    assert_rounded(dx, slope, before=error + 1e-6 * slope.abs() + 1e-6 * (gate * near.abs()).nan_to_num() * (x < 0))


@pytest.mark.parametrize("op", OPS)
def test_special_values(world: World, op: str) -> None:
    gate = torch.tensor([-torch.inf, torch.inf, torch.nan, 1.0], device=world.device)
    x = torch.cat((gate, torch.full_like(gate, 2.0))).requires_grad_()
    y = OPS[op][0](x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y[:2].tolist() == [0.0, torch.inf]
    assert y.isnan().tolist() == [False, False, True, False]
    assert dx[:2].tolist() == [0.0, 2.0]
    assert dx[4:6].tolist() == [0.0, torch.inf]


@pytest.mark.parametrize("op", OPS)
def test_double_backward(op: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, x = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in [(3, 4), (3, 4), (3, 6)]
    )
    for inputs in ((gate, up), (x,)):
        assert torch.autograd.gradcheck(OPS[op][0], inputs)
        assert torch.autograd.gradgradcheck(OPS[op][0], inputs)


def test_opcheck(world: World) -> None:
    x, up = (t.requires_grad_() for t in make_inputs(world, (4, 3, 16), torch.float32, 2))
    ops = torch.ops.fusedformer
    for activation in range(3):
        for given_up, dy in ((up, x.detach().clone()), (None, x.detach()[..., :8].clone())):
            torch.library.opcheck(ops.glu_fwd.default, (x, given_up, activation))
            torch.library.opcheck(ops.glu_bwd.default, (dy, x, given_up, activation))


def test_compiles_without_a_graph_break(world: World) -> None:
    x, up = make_inputs(world, (4, 16), torch.float32, 2)
    for function, arguments in ((swiglu, (x,)), (geglu, (x, up))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(()),), "x has no dimension to split"),
        ((torch.ones(2, 5),), "x has 5 features, expected an even number"),
        ((torch.ones(2, 4), torch.ones(2, 3)), r"the gate is \(2, 4\) float32, up is \(2, 3\) float32"),
        ((torch.ones(2, 4), torch.ones(2, 4).half()), r"the gate is \(2, 4\) float32, up is \(2, 4\) float16"),
        ((torch.ones(2, 4), 1.0), r"up is float, expected a torch.Tensor"),
        ((torch.ones(2, 4).int(),), "x is int32"),
        ((torch.ones(2, 4), torch.ones(2, 4, device="meta")), "x is on cpu, up is on meta"),
    ],
)
def test_bad_input(arguments: tuple[Tensor, ...], message: str) -> None:
    for function in (geglu, swiglu):
        with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
            function(*arguments)


def test_bad_approximation_and_dtype() -> None:
    with pytest.raises(ValueError, match=r"geglu: approximate is 'erf', expected one of \('none', 'tanh'\)"):
        geglu(torch.ones(2, 4), approximate="erf")
    with emulation.emulated(), pytest.raises(ValueError, match="x is float64"):
        swiglu(torch.ones(2, 4, dtype=torch.float64))


def test_the_kernels_refuse_what_they_cannot_read() -> None:
    ops = torch.ops.fusedformer
    with emulated_world("glu"):
        with pytest.raises(RuntimeError, match="must be even, got 3"):
            ops.glu_fwd(torch.ones(2, 3), None, 0)
        with pytest.raises(RuntimeError, match="x and up must have the same shape"):
            ops.glu_fwd(torch.ones(2, 4), torch.ones(2, 3), 0)
        with pytest.raises(RuntimeError, match="dy must have the output's shape"):
            ops.glu_bwd(torch.ones(2, 4), torch.ones(2, 4), None, 0)
