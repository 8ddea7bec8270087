"""Softmax with scale, mask and causal in every world: values, gradients, broadcasting, what is hidden, errors."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from conftest import World
from oracle import check_op
from torch import Tensor

from fusedformer import softmax

pytestmark = pytest.mark.op("masked_softmax")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 7, 8, 33, 127, 1000, 4097]


def future(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


def plain(x: Tensor, scale: float = 1.0, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """PyTorch's; every row has to see something."""
    scores = x * scale
    if mask is not None:
        mask = mask.to(x.device)
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(x.dtype)
    if causal:
        scores = scores.masked_fill(future(*x.shape[-2:]).to(x.device), -math.inf)
    return torch.softmax(scores, -1)


def check(x: Tensor, **options: Any) -> None:
    check_op(partial(softmax, **options), partial(plain, **options), [x])


def make_input(world: World, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(world.device, dtype)


def make_mask(world: World, *shape: int) -> Tensor:
    """Boolean; the first column is seen by all."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0] = True
    return mask.to(world.device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_output_and_gradient_are_within_budget(world: World, length: int, dtype: torch.dtype) -> None:
    x = make_input(world, (3 + 100 // length, 7, length), dtype)
    check(x, scale=0.7)
    check(x, mask=make_mask(world, 7, length), scale=-0.5)
    check(x, mask=make_input(world, (7, length), dtype, seed=2))
    if length >= 7:
        check(x, causal=True, scale=0.3)
        check(x, causal=True, mask=make_mask(world, 1, 7, length))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_wider_mask_is_taken_as_it_is(world: World, dtype: torch.dtype) -> None:
    x, mask = make_input(world, (4, 100), dtype), make_input(world, (100,), torch.float32, seed=2)
    exact = torch.softmax(x.double() + mask.double(), -1)
    torch.testing.assert_close(softmax(x, mask=mask), exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_long_row(world: World) -> None:
    x = make_input(world, (3, 65_537), torch.bfloat16)
    check(x, mask=make_mask(world, 1, 65_537), causal=True)


@pytest.mark.parametrize("shape", [(1, 1, 6, 50), (3, 1, 1, 50), (2, 1, 50), (1, 6, 1), (50,), (1,), (3, 2, 6, 50)])
def test_masks_are_broadcast(world: World, shape: tuple[int, ...]) -> None:
    x = make_input(world, (3, 2, 6, 50), torch.float32)
    shape = shape if len(shape) != 3 or shape[0] == 1 else (shape[0], 6, shape[2])
    check(x, mask=make_mask(world, *shape))
    mask = make_input(world, shape, torch.float32, seed=2)
    check_op(lambda x, m: softmax(x, mask=m), lambda x, m: plain(x, mask=m), [x, mask])


def test_any_strides_and_alignment(world: World) -> None:
    storage = make_input(world, (3, 4, 6, 80), torch.bfloat16)
    mask = make_mask(world, 3, 4, 6, 80)
    for offset in (0, 1, 3):
        columns = slice(offset, offset + 50)
        check(storage[..., columns], mask=mask[..., columns].clone())
        check(storage[..., columns], mask=mask[..., columns])
        check(storage[:, 1:3, ::2, columns], mask=mask[:, 2:, 1::2, columns])
        check(storage.transpose(0, 2)[..., columns], mask=mask.transpose(0, 2)[..., columns])
        check(storage.movedim(-1, 0)[columns], mask=mask.movedim(-1, 0)[columns] | make_mask(world, 3, 4, 6))


def test_masks_are_not_expanded_in_memory(world: World) -> None:
    if not world.is_device_code:
        pytest.skip("PyTorch copies as it likes")
    x, mask = make_input(world, (3, 4, 8, 64), torch.float32), make_mask(world, 3, 1, 8, 64)
    with torch.autograd.profiler.profile() as profile:
        y = softmax(x.requires_grad_(), mask=mask, scale=0.1)
        torch.autograd.grad(y, x, x.detach())
    assert "aten::copy_" not in {event.name for event in profile.function_events}


@pytest.mark.parametrize("keys", [3, 5, 9])
def test_causal_ends_in_the_last_column(world: World, keys: int) -> None:
    """Rows that see nothing give 0."""
    x = make_input(world, (2, 5, keys), torch.float32).requires_grad_()
    y = softmax(x, causal=True)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    hidden = future(5, keys).to(world.device).expand_as(y)
    assert torch.equal(y == 0, hidden)
    assert torch.equal(dx[hidden], torch.zeros_like(dx[hidden]))
    sums = (~hidden).any(-1).float()
    torch.testing.assert_close(y.sum(-1), sums)


@pytest.mark.parametrize("length", [5, 40, 3000])
@pytest.mark.parametrize("kind", ["boolean", "additive", "causal"])
def test_what_is_hidden_does_not_leak(world: World, kind: str, length: int) -> None:
    x = make_input(world, (2, 4, length), torch.float32)
    seen = make_mask(world, 4, length)
    options: dict[str, Any] = {"mask": seen}
    if kind == "additive":
        options["mask"] = torch.zeros_like(x[0]).masked_fill(~seen, -math.inf)
    elif kind == "causal":
        seen, options = ~future(4, length).to(world.device), {"causal": True}
    clean = softmax(x, **options)
    for value in (math.nan, math.inf, -math.inf):
        filled = x.masked_fill(~seen, value).requires_grad_()
        y = softmax(filled, **options)
        (dx,) = torch.autograd.grad(y, filled, torch.ones_like(y).masked_fill(~seen, value))
        torch.testing.assert_close(y, clean, rtol=0, atol=0)
        assert torch.equal(y.masked_select(~seen), torch.zeros_like(y.masked_select(~seen)))
        assert dx.isfinite().all()
        assert torch.equal(dx.masked_select(~seen), torch.zeros_like(dx.masked_select(~seen)))


def test_rows_that_see_nothing_are_zero(world: World) -> None:
    x = make_input(world, (3, 20), torch.float32).requires_grad_()
    mask = torch.zeros(3, 20, device=world.device)
    mask[1] = -math.inf
    for given in (mask, mask == 0):
        y = softmax(x, mask=given)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        assert torch.equal(y[1], torch.zeros_like(y[1]))
        assert torch.equal(dx[1], torch.zeros_like(y[1]))
        assert dx.isfinite().all()


def test_a_scale_of_zero_keeps_the_mask_and_its_gradient(world: World) -> None:
    x, mask = (make_input(world, (4, 30), torch.float32, seed).requires_grad_() for seed in range(2))
    y = softmax(x, mask=mask, scale=0.0)
    torch.testing.assert_close(y, torch.softmax(mask, -1))
    dx, dmask = torch.autograd.grad(y.square().sum(), (x, mask))
    assert torch.equal(dx, torch.zeros_like(dx))
    torch.testing.assert_close(dmask, torch.autograd.grad(torch.softmax(mask, -1).square().sum(), mask)[0])


def test_another_dimension(world: World) -> None:
    x, mask = make_input(world, (4, 9, 17), torch.float32), make_mask(world, 4, 1, 17)
    mask[0] = True
    expected = torch.softmax(x.masked_fill(~mask, -math.inf), 0)
    torch.testing.assert_close(softmax(x, 0, mask=mask), expected)
    rows = torch.arange(9, device=world.device).view(9, 1) != 3
    torch.testing.assert_close(softmax(x, 1, mask=rows), torch.softmax(x.masked_fill(~rows, -math.inf), 1))


@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (2, 4, 0)])
def test_empty(world: World, shape: tuple[int, ...]) -> None:
    x = make_input(world, shape, torch.float32).requires_grad_()
    y = softmax(x, causal=True, mask=make_mask(world, 1, 1, 1)[0])
    y.sum().backward()
    assert y.shape == shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_double_backward(causal: bool, with_mask: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = (x, bias) if with_mask else (x,)

    def function(x: Tensor, *mask: Tensor) -> Tensor:
        return softmax(x, scale=0.6, mask=mask[0] if mask else None, causal=causal)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_opcheck(world: World) -> None:
    x = make_input(world, (4, 3, 16), torch.float32).requires_grad_()
    mask = make_mask(world, 4, 3, 16)
    torch.library.opcheck(torch.ops.fusedformer.masked_softmax_fwd.default, (x, mask, True, 0.5))
    y = softmax(x, mask=mask, causal=True, scale=0.5).detach().requires_grad_()
    torch.library.opcheck(torch.ops.fusedformer.masked_softmax_bwd.default, (x, y, True, 0.5))


def test_compiles_without_a_graph_break(world: World) -> None:
    x, mask = make_input(world, (4, 16), torch.float32), make_mask(world, 16)
    compiled = torch.compile(partial(softmax, scale=0.5), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask=mask), softmax(x, mask=mask, scale=0.5))


X = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.inf}, "scale is inf, expected a finite number"),
        ({"mask": 1.0}, "mask is float, expected a torch.Tensor"),
        ({"mask": torch.ones(2, 8)}, r"mask has shape \(2, 8\), which is not broadcast to \(2, 3, 8\)"),
        ({"mask": torch.ones(1, 2, 3, 8)}, r"mask has shape \(1, 2, 3, 8\)"),
        ({"mask": torch.ones(8, dtype=torch.int64)}, "mask is int64"),
        ({"causal": True, "dim": 1}, r"causal asks for two dimensions and dim -1, x has shape \(2, 3, 8\)"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        softmax(X, **options)
    with pytest.raises(ValueError, match=r"causal asks for two dimensions and dim -1, x has shape \(8,\)"):
        softmax(X[0, 0], causal=True)
