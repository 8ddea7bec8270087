"""Attention in every world: values, log-sum-exp and gradients over sizes, dtypes, head counts, masks and strides."""

from collections.abc import Callable

import pytest
import torch
from attention_cases import Case, check, check_inputs, make_inputs, make_tensors, naive_attention
from conftest import World, emulated_world
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusedformer.kernels.attention.op import attention

pytestmark = pytest.mark.op("attention")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Rows and keys that end inside a tile, fill it, span several, and more queries than keys or fewer.
LENGTHS = [(1, 70), (64, 64), (70, 100), (100, 70), (130, 130)]
HEAD_DIMS = [(1, 1), (16, 3), (64, 64), (80, 96), (128, 16), (192, 128), (256, 256), (300, 300), (24, 512), (512, 512)]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)
def test_lengths(world: World, seqlen_q: int, seqlen_k: int, causal: bool) -> None:
    check(Case(seqlen_q, seqlen_k, dtype=torch.bfloat16, causal=causal), world.device)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dtypes(world: World, dtype: torch.dtype, causal: bool) -> None:
    check(Case(70, 100, dtype=dtype, causal=causal), world.device)


def test_single_key(world: World) -> None:
    """Its weight is 1: the gradients of q and k cancel to 0, up to the rounding of what is taken from what."""
    q, k, v = (x.requires_grad_() for x in make_tensors(Case(5, 1, 16), world.device))
    out = attention(q, k, v)
    assert torch.equal(out, v.expand(q.shape))
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    torch.testing.assert_close(dq, torch.zeros_like(q), rtol=0, atol=1e-5)
    torch.testing.assert_close(dk, torch.zeros_like(k), rtol=0, atol=1e-5)
    torch.testing.assert_close(dv, torch.full_like(v, 10.0))


@pytest.mark.parametrize(("head_dim", "head_dim_v"), HEAD_DIMS)
def test_head_dimensions(world: World, head_dim: int, head_dim_v: int) -> None:
    case = Case(20, 40, head_dim, heads=1, head_dim_v=head_dim_v, dtype=torch.bfloat16, causal=True)
    check(case, world.device)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_shared_key_heads(world: World, heads: int, kv_heads: int) -> None:
    check(Case(33, 40, 16, heads, kv_heads, batch=2, dtype=torch.float16, causal=True), world.device)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", ["1hqk", "b11k", "hq1", "qk", "k", ""])
def test_masks(world: World, shape: str, causal: bool) -> None:
    check(Case(40, 70, 16, heads=2, kv_heads=1 + causal, batch=2, mask=shape, causal=causal), world.device)


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.4])
def test_scales(world: World, scale: float) -> None:
    check(Case(40, 70, 16, dtype=torch.float16, scale=scale, causal=True), world.device)
    check(Case(40, 70, 16, dtype=torch.float16, scale=scale, mask="qk"), world.device)


@pytest.mark.parametrize(("batch", "seqlen_q", "seqlen_k"), [(0, 5, 5), (2, 0, 5), (2, 5, 0), (1, 0, 0)])
def test_empty(world: World, batch: int, seqlen_q: int, seqlen_k: int) -> None:
    case = Case(seqlen_q, seqlen_k, 16, batch=batch)
    q, k, v = (x.requires_grad_() for x in make_tensors(case, world.device))
    out, lse = attention(q, k, v, return_lse=True)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full((batch, 2, seqlen_q), -torch.inf, device=world.device))
    for x in (q, k, v):
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.tuples(st.integers(1, 80), st.integers(16, 80)),
    head_dim=st.integers(1, 64),
    group=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    masked=st.booleans(),
)
def test_any_sizes_emulated(
    lengths: tuple[int, int], head_dim: int, group: int, dtype: torch.dtype, causal: bool, masked: bool
) -> None:
    mask = "qk" if masked else None
    with emulated_world("attention") as world:
        check(Case(*lengths, head_dim, group, dtype=dtype, causal=causal, mask=mask), world.device)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _dims_apart(x: Tensor) -> Tensor:
    return x.transpose(1, 3).contiguous().transpose(1, 3)


def _inside_nan(x: Tensor) -> Tensor:
    """The same values as the middle of a larger tensor, unaligned: whatever is read from outside shows."""
    batch, length, heads, head_dim = x.shape
    larger = x.new_full((batch, length + 4, heads + 2, head_dim + 3), torch.nan)
    view = larger[:, 2:-2, 1:-1, 1:-2]
    return view.copy_(x)


def _dims_equal(x: Tensor) -> Tensor:
    return x[..., :1].expand(x.shape)


# The last two are what ATen's flash attention computes on a CPU.
STRIDED = [(40, 70, 1, True), (40, 70, 2, False), (70, 70, 2, True)]


@pytest.mark.parametrize("view", [_heads_first, _dims_apart, _dims_equal, _inside_nan])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "kv_heads", "causal"), STRIDED)
def test_any_strides(
    world: World, seqlen_q: int, seqlen_k: int, kv_heads: int, causal: bool, view: Callable[[Tensor], Tensor]
) -> None:
    case = Case(seqlen_q, seqlen_k, 20, heads=2, kv_heads=kv_heads, dtype=torch.bfloat16, causal=causal)
    check_inputs(case, {name: view(x) for name, x in make_inputs(case, world.device).items()})


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_gradient_of_the_log_sum_exp(world: World, dtype: torch.dtype, causal: bool) -> None:
    case = Case(70, 70, 40, heads=1, kv_heads=1, dtype=dtype, causal=causal)
    check_inputs(case, make_inputs(case, world.device), through_lse=False)


def test_interleaved_in_place(world: World) -> None:
    """q, k and v interleaved in the last dimension of one projection."""
    case = Case(40, 40, 16, kv_heads=2)
    interleaved = torch.stack(make_tensors(case, world.device), -1)
    check_inputs(case, dict(zip("qkv", interleaved.unbind(-1))))


def test_expanded_keys_and_values(world: World) -> None:
    case = Case(40, 70, 16, heads=4, kv_heads=2, batch=2)
    q, k, v = make_tensors(case, world.device)
    check_inputs(case, {"q": q, "k": k[:1, :, :1].expand(k.shape), "v": v[:1, :1].expand(v.shape)})


def test_layout_bhsd_is_a_view(world: World) -> None:
    q, k, v = make_tensors(Case(40, 70, 16), world.device)
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    transposed = [x.transpose(1, 2) for x in (q, k, v)]
    out_bhsd, lse_bhsd = attention(*transposed, causal=True, layout="bhsd", return_lse=True)
    assert torch.equal(out_bhsd.transpose(1, 2), out)
    assert torch.equal(lse_bhsd, lse)


def test_large_scores_do_not_overflow(world: World) -> None:
    q, k, v = make_tensors(Case(40, 70, 16), world.device)
    out, lse = attention(1e4 * q, 1e4 * k, v, return_lse=True)
    exact, exact_lse = naive_attention(1e4 * q.double(), 1e4 * k.double(), v.double())
    torch.testing.assert_close(out, exact.float())
    torch.testing.assert_close(lse, exact_lse.float())
