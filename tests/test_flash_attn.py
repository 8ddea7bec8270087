"""flash-attn 2's signatures: the same as `attention` with the same meaning, in flash-attn's order of arguments."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import World
from torch import Tensor

from fusedformer.kernels.attention import flash_attn
from fusedformer.kernels.attention.decode.op import flash_attn_with_kvcache
from fusedformer.kernels.attention.op import attention

pytestmark = pytest.mark.op("attention")

fa: Any = flash_attn  # as its callers know it, by positions
COMMON = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs"
CACHE = (
    "k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad block_table softmax_scale causal window_size"
    " softcap rotary_interleaved alibi_slopes num_splits return_softmax_lse"
)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (fa.flash_attn_func, f"q k v {COMMON}"),
        (fa.flash_attn_qkvpacked_func, f"qkv {COMMON}"),
        (fa.flash_attn_kvpacked_func, f"q kv {COMMON}"),
        (fa.flash_attn_varlen_func, f"q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k {COMMON} block_table"),
        (fa.flash_attn_varlen_qkvpacked_func, f"qkv cu_seqlens max_seqlen {COMMON}"),
        (fa.flash_attn_varlen_kvpacked_func, f"q kv cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k {COMMON}"),
        (flash_attn_with_kvcache, f"q k_cache v_cache {CACHE}"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_are_those_of_flash_attn(function: Callable[..., Any], names: str) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters) == names.split()
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    given = {"dropout_p": 0.0, "causal": False, "window_size": (-1, -1), "softcap": 0.0, "deterministic": False}
    given |= {"return_attn_probs": False, "rotary_interleaved": True, "num_splits": 0, "return_softmax_lse": False}
    assert defaults == {name: given.get(name) for name in defaults}


def normal(world: World, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(world.device)


# Positional, as flash-attn's callers write them: dropout_p to softcap.
SETTINGS = (0.0, 0.3, True, (5, 0), 2.0)
KEYWORDS: dict[str, Any] = {"scale": 0.3, "causal": True, "window": (5, 0), "softcap": 2.0, "return_lse": True}


def test_dense(world: World) -> None:
    qkv = normal(world, 2, 20, 3, 4, 16)
    slopes = normal(world, 4)
    want, lse = attention(*qkv.unbind(2), **KEYWORDS, alibi_slopes=slopes)
    rest = (*SETTINGS, slopes, False, True)
    for got in (
        fa.flash_attn_func(*qkv.unbind(2), *rest),
        fa.flash_attn_qkvpacked_func(qkv, *rest),
        fa.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], *rest),
    ):
        assert torch.equal(got[0], want)
        assert torch.equal(got[1], lse)
        assert got[2] is None


def test_packed(world: World) -> None:
    qkv = normal(world, 25, 3, 4, 16)
    starts = torch.tensor([0, 9, 9, 25], dtype=torch.int32, device=world.device)
    want, lse = attention(*qkv.unbind(1), **KEYWORDS, cu_seqlens_q=starts, cu_seqlens_k=starts)
    rest = (*SETTINGS, None, True, True)
    for got in (
        fa.flash_attn_varlen_func(*qkv.unbind(1), starts, starts, 16, 16, *rest),
        fa.flash_attn_varlen_qkvpacked_func(qkv, starts, 16, *rest),
        fa.flash_attn_varlen_kvpacked_func(qkv[:, 0], qkv[:, 1:], starts, starts, 16, 16, *rest),
    ):
        assert torch.equal(got[0], want)
        assert torch.equal(got[1], lse)
        assert got[2] is None


def test_gradients_reach_the_packed_tensor(world: World) -> None:
    qkv = normal(world, 1, 12, 3, 2, 16).requires_grad_()
    out = fa.flash_attn_qkvpacked_func(qkv, causal=True)
    (got,) = torch.autograd.grad(out.square().sum(), qkv)
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(2))
    wanted = torch.autograd.grad(attention(q, k, v, causal=True).square().sum(), (q, k, v))
    assert torch.equal(got, torch.stack(wanted, 2))


def test_dropout_is_on(world: World) -> None:
    q = normal(world, 1, 12, 2, 16)
    torch.manual_seed(0)
    out = fa.flash_attn_func(q, q, q, 0.5)
    torch.manual_seed(0)
    assert torch.equal(out, attention(q, q, q, dropout_p=0.5))
    assert not torch.equal(out, attention(q, q, q))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


STARTS = torch.tensor([0, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fa.flash_attn_func(zeros(5, 2, 8), zeros(5, 2, 8), zeros(5, 2, 8)), "q has shape .*, expected 4"),
        (lambda: fa.flash_attn_func(*[zeros(1, 5, 2, 8)] * 3, 1.0), "dropout_p is 1.0"),
        (lambda: fa.flash_attn_func(*[zeros(1, 5, 2, 8)] * 3, window_size=(1,)), r"window is \(1,\)"),
        (lambda: fa.flash_attn_qkvpacked_func(zeros(1, 5, 2, 2, 8)), r"qkv has .* expected \(B, S, 3, H, D\)"),
        (lambda: fa.flash_attn_kvpacked_func(zeros(1, 5, 2, 8), zeros(1, 5, 2, 8)), "kv has .* expected .B, S, 2, Hkv"),
        (lambda: fa.flash_attn_varlen_qkvpacked_func(zeros(5, 2, 8), STARTS, 5), r"expected \(total, 3, H, D\)"),
        (
            lambda: fa.flash_attn_varlen_func(*[zeros(5, 2, 8)] * 3, STARTS, STARTS, 5, 5, block_table=STARTS[None]),
            "block_table is given, expected None: flash_attn_with_kvcache",
        ),
        (
            lambda: fa.flash_attn_varlen_func(*[zeros(5, 2, 8)] * 3, None, None, 5, 5),
            "cu_seqlens_q is NoneType, expected a torch.Tensor",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
