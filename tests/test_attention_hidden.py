"""What attention does not see must not matter: NaN in hidden places, unwritten outputs, the rest of the batch."""

from collections.abc import Iterator

import pytest
import torch
from attention_cases import Case, make_tensors, run
from conftest import World
from torch import Tensor

from fusedformer.kernels.attention import attention

# The interpreter computes with NumPy, which warns of what these tests provoke.
pytestmark = [pytest.mark.op("attention"), pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]

CASE = Case(40, 70, 16, dtype=torch.bfloat16)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN: a place that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_same_where(kept: Tensor, got: Tensor, want: Tensor) -> None:
    """Equal up to rounding where `kept`, NaN or infinite elsewhere."""
    kept = kept.expand(got.shape)
    torch.testing.assert_close(got[kept], want[kept], rtol=2e-2, atol=2e-2)
    assert not got[~kept].isfinite().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_padded_keys_do_not_matter(world: World, value: float) -> None:
    mask = torch.arange(70, device=world.device) < 45
    q, k, v = make_tensors(CASE, world.device)
    clean = run(lambda *x: attention(*x, mask=mask, return_lse=True), (q, k, v))
    k[:, 45:] = value
    v[:, 60:] = value
    dirty = run(lambda *x: attention(*x, mask=mask, return_lse=True), (q, k, v))
    for got, want in zip(dirty, clean, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "mask"])
def test_nan_in_a_value_reaches_the_queries_that_see_it(world: World, masked: bool) -> None:
    """Key 50 is seen by query 20 and those after it."""
    mask = torch.ones(40, 70, dtype=torch.bool, device=world.device).tril(30) if masked else None
    q, k, v = make_tensors(CASE, world.device)
    clean, clean_lse = attention(q, k, v, causal=not masked, mask=mask, return_lse=True)
    v[:, 50, :, 3] = torch.nan
    v[:, 51, :, 4] = torch.inf
    out, lse = attention(q, k, v, causal=not masked, mask=mask, return_lse=True)
    unseen = torch.ones(40, 16, dtype=torch.bool, device=world.device)
    unseen[20:, 3] = False
    unseen[21:, 4] = False
    assert_same_where(unseen[None, :, None], out, clean)
    assert out[:, 20:, :, 3].isnan().all()
    assert (out[:, 21:, :, 4] == torch.inf).all()
    torch.testing.assert_close(lse, clean_lse)


def test_nan_in_a_key_reaches_the_queries_that_see_it(world: World) -> None:
    q, k, v = make_tensors(CASE, world.device)
    clean, clean_lse, clean_dq, _, _ = run(lambda *x: attention(*x, causal=True, return_lse=True), (q, k, v))
    k[:, 50] = torch.nan
    out, lse, dq, _, _ = run(lambda *x: attention(*x, causal=True, return_lse=True), (q, k, v))
    unseen = torch.arange(40, device=world.device) < 20
    assert_same_where(unseen[None, :, None, None], out, clean)
    assert_same_where(unseen[None, None], lse, clean_lse)
    assert_same_where(unseen[None, :, None, None], dq, clean_dq)


@pytest.mark.parametrize("place", ["q", "dout"])
def test_nan_in_a_query_reaches_the_keys_that_it_sees(world: World, place: str) -> None:
    """Query 15 sees keys 0 to 45, and no key after."""
    tensors = [x.requires_grad_() for x in make_tensors(CASE, world.device)]
    dout = torch.ones_like(tensors[0])

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*tensors, causal=True), tensors, dout)

    clean_dq, clean_dk, clean_dv = gradients()
    with torch.no_grad():
        (tensors[0] if place == "q" else dout)[:, 15] = torch.nan
    dq, dk, dv = gradients()
    assert_same_where((torch.arange(40, device=world.device) != 15)[None, :, None, None], dq, clean_dq)
    unseen = (torch.arange(70, device=world.device) > 45)[None, :, None, None]
    assert_same_where(unseen, dk, clean_dk)
    assert_same_where(unseen, dv, clean_dv)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_every_place_is_written(world: World, poisoned_memory: None, causal: bool) -> None:
    for case in (Case(70, 40, 20, causal=causal), Case(40, 70, 20, causal=causal)):
        results = run(lambda *x: attention(*x, causal=causal, return_lse=True), make_tensors(case, world.device))
        assert not any(result.isnan().any() for result in results)


def test_a_query_that_sees_no_key_gives_zeros(world: World) -> None:
    mask = torch.ones(40, 70, dtype=torch.bool, device=world.device)
    mask[[0, 17, 39]] = False
    tensors = make_tensors(CASE, world.device)
    out, lse, dq, dk, dv = run(lambda *x: attention(*x, mask=mask, return_lse=True), tensors)
    for rows in (out[:, [0, 17, 39]], dq[:, [0, 17, 39]]):
        assert torch.equal(rows, torch.zeros_like(rows))
    assert (lse[:, :, [0, 17, 39]] == -torch.inf).all()
    assert dk.isfinite().all()
    assert dv.isfinite().all()


def test_a_key_that_no_query_sees_has_no_gradient(world: World) -> None:
    *_, dk, dv = run(
        lambda *x: attention(*x, mask=torch.arange(70, device=world.device) != 31, return_lse=True),
        make_tensors(CASE, world.device),
    )
    assert torch.equal(dk[:, 31], torch.zeros_like(dk[:, 31]))
    assert torch.equal(dv[:, 31], torch.zeros_like(dv[:, 31]))


def test_same_bits_again_and_in_another_batch(world: World) -> None:
    case = Case(33, 70, 16, heads=2, kv_heads=1, batch=3, dtype=torch.bfloat16)
    q, k, v = make_tensors(case, world.device)

    def results(*tensors: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        out, lse = attention(*leaves, causal=True, return_lse=True)
        return [out, lse, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    batch = results(q, k, v)
    for got, want in zip(results(q, k, v), batch, strict=True):
        assert torch.equal(got, want)
    if not world.is_device_code:
        return  # a matmul of the CPU may sum in another order for another batch
    for got, want in zip(results(q[1:2], k[1:2], v[1:2]), batch, strict=True):
        assert torch.equal(got, want[1:2])
