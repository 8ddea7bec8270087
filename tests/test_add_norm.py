"""Dropout + residual + norm in every world: both outputs, all gradients, the mask, strides, errors.

`arrange` makes the two functions one: both take x, residual and the parameters of their norm.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import World, emulated_world
from oracle import assert_within_budget, check_op
from test_attention_dropout import textbook_philox
from torch import Tensor

from fusedformer import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from fusedformer.kernels import reference
from fusedformer.kernels.philox import philox_words

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 7, 8, 33, 1000, 1024, 4097]
SEED = 0x0123_4567_89AB_CDEF
P = 0.3

Norm = Callable[..., Tensor]
# The function, the norm that it ends with, and PyTorch's.
KINDS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Norm, Norm]] = {
    "add_layer_norm": (add_layer_norm, layer_norm, lambda s, w, b: F.layer_norm(s, s.shape[-1:], w, b)),
    "add_rms_norm": (add_rms_norm, rms_norm, lambda s, w: F.rms_norm(s, s.shape[-1:], w)),
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.op(name)) for name in KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make_inputs(kind: str, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """x, residual and parameters."""
    generator = torch.Generator().manual_seed(0)
    rows = [2 * torch.randn(shape, generator=generator) + 0.5 for _ in range(2)]
    weight, bias = (1 + 0.1 * torch.randn(shape[-1], generator=generator) for _ in range(2))
    parameters = [weight, bias] if kind == "add_layer_norm" else [weight]
    return [tensor.to(device, dtype) for tensor in (*rows, *parameters)]


def kept(shape: tuple[int, ...], seed: int = SEED, p: float = P) -> Tensor:
    """Which elements dropout keeps, by the paper's generator."""
    key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    rows, n = math.prod(shape[:-1]), shape[-1]
    words = [[word for j in range(0, n, 4) for word in textbook_philox((j // 4, i, 0, 0), key)] for i in range(rows)]
    return (torch.tensor(words)[:, :n].reshape(shape) >> 8).float() * 2.0**-24 >= torch.tensor(p)


def both(kind: str, function: str, keep: Tensor | None = None, **options: Any) -> Callable[..., Tensor]:
    """The two outputs as one, (..., 2 N): `ours`, or `plain` with the mask."""
    fused, _, norm = KINDS[kind]

    def ours(x: Tensor, residual: Tensor, *parameters: Tensor) -> Tensor:
        return torch.cat(fused(x, residual, *parameters, **options), -1)

    def plain(x: Tensor, residual: Tensor, *parameters: Tensor) -> Tensor:
        dropped = x if keep is None else torch.where(keep.to(x.device), x / (1 - P), 0.0)
        s = dropped + residual
        return torch.cat((norm(s, *parameters).to(s.dtype), s), -1)

    return {"ours": ours, "plain": plain}[function]


def check(kind: str, inputs: list[Tensor], dropout: bool = False) -> None:
    device = inputs[0].device
    keep = kept(inputs[0].shape) if dropout else None
    options: dict[str, Any] = {"dropout_p": P, "seed": torch.tensor([SEED], device=device)} if dropout else {}
    names = ["dx", "dresidual", "dweight", "dbias"][: len(inputs)]
    check_op(both(kind, "ours", **options), both(kind, "plain", keep), inputs, names=names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_and_gradients_are_within_budget(world: World, kind: str, length: int, dtype: torch.dtype) -> None:
    check(kind, make_inputs(kind, world.device, (5, length), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 7, 8, 33, 1000])
def test_dropout_is_that_of_the_paper(world: World, kind: str, length: int, dtype: torch.dtype) -> None:
    check(kind, make_inputs(kind, world.device, (5, length), dtype), dropout=True)


def test_many_rows(world: World, kind: str) -> None:
    check(kind, make_inputs(kind, world.device, (1037, 24), torch.float32), dropout=True)


def test_long_rows(world: World, kind: str) -> None:
    check(kind, make_inputs(kind, world.device, (2, 40_000), torch.bfloat16))


def test_one_row(world: World, kind: str) -> None:
    """Whose gradients are contiguous and begin at any element: that of s after 27."""
    check(kind, make_inputs(kind, world.device, (1, 27), torch.bfloat16), dropout=True)


def test_rows_are_numbered_through_all_dimensions(world: World, kind: str) -> None:
    check(kind, make_inputs(kind, world.device, (3, 2, 20), torch.float32), dropout=True)


@pytest.mark.parametrize("n", [24, 27])
@pytest.mark.parametrize("rung", ["8 1 0", "8 4 0", "32 8 0", "64 4 1", "64 0 1", "32 4 2", "32 0 3"])
def test_dropout_on_every_kind_of_rung(kind: str, rung: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDFORMER_EMULATED_RUNG", rung)
    with emulated_world(kind) as world:
        check(kind, make_inputs(kind, world.device, (7, n), torch.float32), dropout=True)


@pytest.mark.parametrize("n", [64, 61])
@pytest.mark.parametrize("dropout_p", [0.0, P])
def test_first_output_is_the_norm_of_the_second(world: World, kind: str, n: int, dropout_p: float) -> None:
    fused, norm, _ = KINDS[kind]
    x, residual, *parameters = make_inputs(kind, world.device, (6, n), torch.bfloat16)
    y, s = fused(x, residual, *parameters, dropout_p=dropout_p)
    assert s.dtype == torch.bfloat16
    if dropout_p == 0:
        assert torch.equal(s, x + residual)
    if world.is_device_code:
        assert torch.equal(y, norm(s, *parameters))
    else:
        torch.testing.assert_close(y, norm(s, *parameters))


@pytest.mark.parametrize("rung", ["64 8 1", "64 0 1"], ids=["hold", "stream"])
def test_first_output_follows_from_the_rounded_sum(kind: str, rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, norm, _ = KINDS[kind]
    monkeypatch.setenv("FUSEDFORMER_EMULATED_RUNG", rung)
    with emulated_world(kind) as world:
        x, residual, *parameters = make_inputs(kind, world.device, (6, 501), torch.bfloat16)
        y, s = fused(x, residual, *parameters, dropout_p=P)
        assert torch.equal(y, norm(s, *parameters))


def test_post_norm_and_pre_norm(world: World, kind: str) -> None:
    """A gradient comes for one of the outputs alone."""
    fused, _, norm = KINDS[kind]
    x, residual, *parameters = make_inputs(kind, world.device, (6, 40), torch.float32)
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    seed = torch.tensor([SEED], device=world.device)
    keep = kept(x.shape).to(world.device)
    s = torch.where(keep, x / (1 - P), 0.0) + residual
    for index, expected in enumerate((norm(s, *parameters), s)):
        out = fused(*leaves, *parameters, dropout_p=P, seed=seed)[index]
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(world.device)
        got = torch.autograd.grad(out, leaves, grad)
        wanted = torch.autograd.grad(expected, leaves, grad, retain_graph=True)
        torch.testing.assert_close(got, wanted)


def test_without_dropout_both_gradients_are_one_tensor(world: World, kind: str) -> None:
    fused = KINDS[kind][0]
    x, residual, *parameters = (t.requires_grad_() for t in make_inputs(kind, world.device, (6, 40), torch.float32))
    y, s = fused(x, residual, *parameters)
    dx, dresidual = torch.autograd.grad((y + s).sum(), (x, residual))
    assert dx.data_ptr() == dresidual.data_ptr()


def test_seeds(world: World, kind: str) -> None:
    fused = KINDS[kind][0]
    x, residual, *parameters = make_inputs(kind, world.device, (40, 50), torch.float32)
    residual.zero_()

    def dropped(seed: int | None) -> Tensor:
        given = None if seed is None else torch.tensor([seed], device=world.device)
        return fused(x, residual, *parameters, dropout_p=P, seed=given)[1] == 0

    torch.manual_seed(0)
    drawn = dropped(None)
    assert not torch.equal(drawn, dropped(None))
    torch.manual_seed(0)
    assert torch.equal(drawn, dropped(None))
    assert torch.equal(dropped(-1), dropped(-1))
    for other in (1, 2**32, 2**63 - 1):
        assert not torch.equal(dropped(0), dropped(other))
    assert abs(dropped(5).float().mean() - P) < 4 * (P * (1 - P) / 2000) ** 0.5


def test_rows_past_32_bits_have_numbers_of_their_own() -> None:
    x = torch.ones(3, 8)
    row = 2**32 + 1
    words = [textbook_philox((j // 4, row & 0xFFFFFFFF, row >> 32, 0), (5, 0))[j % 4] for j in range(8)]
    seed = torch.tensor([5])
    got = philox_words(seed, torch.arange(2), torch.tensor(row & 0xFFFFFFFF), torch.tensor(row >> 32))
    assert torch.stack(got).T.flatten().tolist() == words
    assert reference.dropout(x, seed, 0.0).equal(x)


def test_dropped_elements_do_not_leak(world: World, kind: str) -> None:
    fused = KINDS[kind][0]
    x, residual, *parameters = make_inputs(kind, world.device, (4, 40), torch.float32)
    seed = torch.tensor([SEED], device=world.device)
    expected = fused(x, residual, *parameters, dropout_p=P, seed=seed)
    poisoned = x.masked_fill(~kept(x.shape).to(world.device), torch.nan)
    for mine, other in zip(fused(poisoned, residual, *parameters, dropout_p=P, seed=seed), expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_any_strides_and_alignment(world: World, kind: str, offset: int) -> None:
    x, residual, *parameters = make_inputs(kind, world.device, (6, 160), torch.bfloat16)
    short = [parameter[:64] for parameter in parameters]
    check(kind, [x[:, offset : offset + 64], residual[:, 2 : 2 + 64], *short])
    check(kind, [x[:, offset : offset + 61], residual[:, 2 : 2 + 61], *(p[:61] for p in short)])
    check(kind, [x.t(), residual.t(), *(parameter[:6] for parameter in parameters)])
    check(kind, [x[:1].expand(6, -1), residual, *parameters])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_with_half_input(world: World, kind: str, dtype: torch.dtype) -> None:
    x, residual, *parameters = make_inputs(kind, world.device, (6, 96), dtype)
    check(kind, [x, residual, *(parameter.float() for parameter in parameters)])


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (3, 0)])
def test_empty(world: World, kind: str, shape: tuple[int, ...]) -> None:
    fused = KINDS[kind][0]
    leaves = [t.requires_grad_() for t in make_inputs(kind, world.device, shape, torch.float32)]
    y, s = fused(*leaves, dropout_p=P)
    assert y.shape == s.shape == shape
    for leaf, grad in zip(leaves, torch.autograd.grad((y + s).sum(), leaves), strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(leaf))


def test_same_bits_again(world: World, kind: str) -> None:
    fused = KINDS[kind][0]
    leaves = [t.requires_grad_() for t in make_inputs(kind, world.device, (70, 336), torch.bfloat16)]
    seed = torch.tensor([SEED], device=world.device)
    runs = []
    for _ in range(2):
        y, s = fused(*leaves, dropout_p=P, seed=seed)
        runs.append([y, s, *torch.autograd.grad((y.float() * s.float()).sum(), leaves)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_gradient_of_both_outputs_is_rounded_once(world: World, kind: str) -> None:
    """Of ds and the norm's share, the sum is rounded, not both and their sum."""
    x, residual, *parameters = make_inputs(kind, world.device, (40, 1000), torch.bfloat16)
    function, plain = both(kind, "ours"), both(kind, "plain")
    grad = torch.randn(40, 2000, generator=torch.Generator().manual_seed(1)).to(x)

    def dresidual(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        leaf = inputs[1].detach().requires_grad_()
        return torch.autograd.grad(function(inputs[0], leaf, *inputs[2:]), leaf, grad.to(leaf))[0]

    inputs = (x, residual, *parameters)
    exact = dresidual(plain, *(t.double() for t in inputs))
    assert_within_budget("dresidual", dresidual(function, *inputs), exact, dresidual(plain, *inputs), gradient=True)


@pytest.mark.parametrize("dropout_p", [0.0, P])
def test_double_backward(kind: str, dropout_p: float) -> None:
    fused = KINDS[kind][0]
    leaves = [t.requires_grad_() for t in make_inputs(kind, torch.device("cpu"), (3, 6), torch.float64)]
    seed = torch.tensor([SEED])
    for parts in (leaves, leaves[:2]):
        for select in (slice(None), slice(1), slice(1, 2)):

            def function(*inputs: Tensor, select: slice = select) -> Any:
                return fused(*inputs, dropout_p=dropout_p, seed=seed)[select]

            assert torch.autograd.gradcheck(function, parts)
            if select != slice(1, 2):
                assert torch.autograd.gradgradcheck(function, parts)


@pytest.mark.parametrize("dropout_p", [0.0, P])
def test_opcheck(world: World, kind: str, dropout_p: float) -> None:
    x, residual, *parameters = (t.requires_grad_() for t in make_inputs(kind, world.device, (4, 3, 16), torch.float32))
    seed = torch.tensor([SEED], device=world.device) if dropout_p else None
    fwd, bwd = (getattr(torch.ops.fusedformer, f"{kind}_{suffix}").default for suffix in ("fwd", "bwd"))
    torch.library.opcheck(fwd, (x, residual, *parameters, seed, 1e-5, dropout_p))
    y, s, *statistics = (t.detach() for t in fwd(x, residual, *parameters, seed, 1e-5, dropout_p))
    needs = [True] * len(parameters)
    weight = parameters[0]
    torch.library.opcheck(bwd, (y, y.clone(), s.requires_grad_(), weight, *statistics, seed, dropout_p, *needs))
    torch.library.opcheck(bwd, (y, None, s, None, *statistics, seed, dropout_p, *needs))


def test_compiles_without_a_graph_break(world: World, kind: str) -> None:
    fused = KINDS[kind][0]
    inputs = make_inputs(kind, world.device, (4, 16), torch.float32)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), fused(*inputs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"residual": torch.ones(2, 7)}, r"residual has shape \(2, 7\), x has \(2, 8\)"),
        ({"residual": torch.ones(2, 8).half()}, r"residual is float16, x is float32"),
        ({"residual": torch.ones(2, 8, device="meta")}, r"x is on cpu, residual is on meta"),
        ({"residual": 1.0}, r"residual is float, expected a torch.Tensor"),
        ({"weight": torch.ones(7)}, r"weight has shape \(7,\), x has 8 features"),
        ({"dropout_p": 1.0}, r"dropout_p is 1.0, expected 0 to 1 \(less than 1\)"),
        ({"dropout_p": -0.1}, r"dropout_p is -0.1"),
        ({"dropout_p": True}, r"dropout_p is True"),
        ({"seed": torch.ones(1)}, r"seed is float32 of shape \(1,\), expected int64 of one element"),
        ({"seed": torch.ones(2, dtype=torch.int64)}, r"seed is int64 of shape \(2,\)"),
        ({"seed": 3}, r"seed is int, expected a torch.Tensor"),
        ({"eps": -1.0}, r"eps is -1.0"),
    ],
)
def test_bad_input(kind: str, arguments: dict[str, Any], message: str) -> None:
    given = {"x": torch.ones(2, 8), "residual": torch.ones(2, 8), "dropout_p": 0.1} | arguments
    with pytest.raises(ValueError, match=f"{kind}: {message}"):
        KINDS[kind][0](**given)
