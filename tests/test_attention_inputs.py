"""What attention refuses, and scaled_dot_product_attention against PyTorch's."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import World
from torch import Tensor

from fusedformer.kernels import emulation
from fusedformer.kernels.attention.op import attention, attention_backward
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention

pytestmark = pytest.mark.op("attention")

Shape = tuple[int, ...]


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


Q, KV = (2, 5, 6, 16), (2, 7, 3, 16)


@pytest.mark.parametrize(
    ("q", "k", "v", "message"),
    [
        (zeros(5, 6, 16), zeros(*KV), zeros(*KV), r"q has shape \(5, 6, 16\), expected 4 dimensions \(bshd\)"),
        (zeros(*Q), zeros(2, 7, 4, 16), zeros(2, 7, 4, 16), "q has 6 heads, k has 4: query heads must be a multiple"),
        (zeros(*Q), zeros(2, 7, 0, 16), zeros(2, 7, 0, 16), "q has 6 heads, k has 0"),
        (zeros(2, 5, 0, 16), zeros(*KV), zeros(*KV), "q has 0 heads, k has 3"),
        (zeros(*Q), zeros(3, 7, 3, 16), zeros(3, 7, 3, 16), "k has batch size 3, q has 2"),
        (zeros(*Q), zeros(*KV), zeros(1, 7, 3, 16), "v has batch size 1, k has 2"),
        (zeros(*Q), zeros(*KV), zeros(2, 8, 3, 16), "v has length 8, k has 7"),
        (zeros(*Q), zeros(*KV), zeros(2, 7, 6, 16), "v has number of heads 6, k has 3"),
        (zeros(*Q), zeros(2, 7, 3, 8), zeros(2, 7, 3, 8), "k has head dimension 8, q has 16"),
        (zeros(1, 1, 1, 513), zeros(1, 1, 1, 513), zeros(1, 1, 1, 8), "q has head dimension 513, expected 1 to 512"),
        (zeros(*Q), zeros(*KV), zeros(2, 7, 3, 513), "v has head dimension 513, expected 1 to 512"),
        (zeros(1, 1, 1, 0), zeros(1, 1, 1, 0), zeros(1, 1, 1, 0), "q has head dimension 0, expected 1 to 512"),
        (zeros(*Q, dtype=torch.int64), zeros(*KV), zeros(*KV), "q is int64, expected float32, float16 or bfloat16"),
        (zeros(*Q), zeros(*KV, dtype=torch.float16), zeros(*KV), "q is float32, k is float16, v is float32"),
        (zeros(*Q), zeros(*KV).to("meta"), zeros(*KV), "q is on cpu, k is on meta"),
        (zeros(*Q), zeros(*KV), None, "v is NoneType, expected a torch.Tensor"),
    ],
)
def test_bad_tensors(q: Tensor, k: Tensor, v: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(q, k, v)


STARTS_Q, STARTS_K = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 4, 7], dtype=torch.int32)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layout": "sbhd"}, r"layout is 'sbhd', expected one of \('bshd', 'bhsd'\)"),
        ({"scale": float("nan")}, "scale is nan, expected a finite number"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"scale": "1"}, "scale is '1', expected a finite number"),
        ({"mask": zeros(5, 7)}, r"mask is float32, expected bool \(True takes part\)"),
        ({"mask": zeros(5, 6, dtype=torch.bool)}, r"mask has shape \(5, 6\).* does not broadcast to \(2, 6, 5, 7\)"),
        ({"mask": zeros(1, 1, 1, 1, 1, dtype=torch.bool)}, r"mask has shape \(1, 1, 1, 1, 1\)"),
        ({"mask": zeros(5, 7, dtype=torch.bool).to("meta")}, "q is on cpu, .* mask is on meta"),
        ({"mask": [True]}, "mask is list, expected a torch.Tensor"),
        ({"bias": zeros(5, 7, dtype=torch.bool)}, r"bias is bool, expected floating point \(added to the scores\)"),
        ({"bias": zeros(5, 7, dtype=torch.int64)}, "bias is int64, expected floating point"),
        ({"bias": zeros(3, 5, 7)}, r"bias has shape \(3, 5, 7\), which does not broadcast to \(2, 6, 5, 7\)"),
        ({"alibi_slopes": zeros(3)}, r"alibi_slopes is float32 of shape \(3,\), .* shape \(6,\) or \(2, 6\)"),
        ({"alibi_slopes": zeros(1, 6)}, r"alibi_slopes is float32 of shape \(1, 6\)"),
        ({"alibi_slopes": zeros(6, dtype=torch.int64)}, r"alibi_slopes is int64 of shape \(6,\), expected floating"),
        ({"alibi_slopes": 0.5}, "alibi_slopes is float, expected a torch.Tensor"),
        ({"sinks": zeros(2, 6)}, r"sinks is float32 of shape \(2, 6\), expected floating point of shape \(6,\)"),
        ({"sinks": zeros(6).to("meta")}, "q is on cpu, sinks is on meta"),
        ({"softcap": -1.0}, "softcap is -1.0, expected 0 to inf"),
        ({"softcap": float("inf")}, "softcap is inf"),
        ({"dropout_p": 1.0}, r"dropout_p is 1.0, expected 0 to 1 \(less than 1\)"),
        ({"dropout_p": -0.1}, "dropout_p is -0.1"),
        ({"dropout_p": float("nan")}, "dropout_p is nan"),
        ({"dropout_p": True}, "dropout_p is True"),
        ({"dropout_p": 0.5, "seed": 3}, "seed is int, expected a torch.Tensor"),
        ({"dropout_p": 0.5, "seed": zeros(1)}, r"seed is float32 of shape \(1,\), expected int64 of one element"),
        ({"dropout_p": 0.5, "seed": zeros(2, dtype=torch.int64)}, r"seed is int64 of shape \(2,\)"),
        ({"window": 3}, r"window is 3, expected two numbers of keys \(left, right\)"),
        ({"window": (1, 2, 3)}, r"window is \(1, 2, 3\)"),
        ({"window": (-2, 0)}, r"window is \(-2, 0\)"),
        ({"window": (0.5, 0)}, r"window is \(0.5, 0\)"),
        ({"cu_seqlens_q": STARTS_Q}, "cu_seqlens_q is given alone, expected both of cu_seqlens_q and cu_seqlens_k"),
    ],
)
def test_bad_settings(keywords: dict[str, Any], message: str) -> None:
    packed = "cu_seqlens_q" in keywords
    with pytest.raises(ValueError, match=message):
        attention(*(zeros(*(shape[1:] if packed else shape)) for shape in (Q, KV, KV)), **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layout": "bhsd"}, "layout is 'bhsd' for packed sequences, expected 'bshd'"),
        ({"mask": zeros(5, 7, dtype=torch.bool)}, "mask is given for packed sequences"),
        ({"bias": zeros(5, 7)}, "bias is given for packed sequences"),
        ({"cu_seqlens_k": STARTS_K.long()}, r"cu_seqlens_k is int64 of shape \(3,\), expected int32"),
        ({"cu_seqlens_q": STARTS_Q[None]}, r"cu_seqlens_q is int32 of shape \(1, 3\)"),
        ({"cu_seqlens_q": STARTS_Q[:1]}, r"cu_seqlens_q is int32 of shape \(1,\)"),
        ({"cu_seqlens_q": [0, 5]}, "cu_seqlens_q is list, expected a torch.Tensor"),
        ({"cu_seqlens_q": STARTS_Q[:2]}, "cu_seqlens_q has 2 elements, cu_seqlens_k has 3 elements"),
        ({"cu_seqlens_q": STARTS_Q.to("meta")}, "q is on cpu, cu_seqlens_q is on meta"),
        ({"alibi_slopes": zeros(3, 6)}, r"alibi_slopes is float32 of shape \(3, 6\), .* \(6,\) or \(2, 6\)"),
    ],
)
def test_bad_packed_sequences(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(
            *(zeros(*x[1:]) for x in (Q, KV, KV)), **{"cu_seqlens_q": STARTS_Q, "cu_seqlens_k": STARTS_K} | keywords
        )


def test_packed_sequences_have_three_dimensions() -> None:
    with pytest.raises(ValueError, match=r"q has shape \(2, 5, 6, 16\), expected 3 dimensions \(packed\)"):
        attention(zeros(*Q), zeros(*KV), zeros(*KV), cu_seqlens_q=STARTS_Q, cu_seqlens_k=STARTS_K)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dout": zeros(2, 5, 6, 8)}, r"dout is float32 of shape \(2, 5, 6, 8\), expected float32 of shape"),
        ({"out": zeros(*Q, dtype=torch.float16)}, "out is float16"),
        ({"lse": zeros(2, 5, 6)}, r"lse is float32 of shape \(2, 5, 6\), expected float32 of shape \(2, 6, 5\)"),
        ({"dlse": zeros(2, 6)}, r"dlse is float32 of shape \(2, 6\)"),
        ({"dropout_p": 0.5}, "dropout_p is 0.5 and seed is None, expected the seed of the forward"),
    ],
)
def test_bad_results(changes: dict[str, Any], message: str) -> None:
    given = {
        "dout": zeros(*Q),
        "q": zeros(*Q),
        "k": zeros(*KV),
        "v": zeros(*KV),
        "out": zeros(*Q),
        "lse": zeros(2, 6, 5),
    }
    with pytest.raises(ValueError, match=message):
        attention_backward(**(given | changes))


def test_layout_is_named_in_errors() -> None:
    with pytest.raises(ValueError, match=r"q has 5 heads, k has 7"):
        attention(zeros(*Q), zeros(*KV), zeros(*KV), layout="bhsd")


def test_device_code_takes_no_float64() -> None:
    tensors = [zeros(1, 2, 1, 16, dtype=torch.float64)] * 3
    with emulation.emulated(), pytest.raises(ValueError, match="q is float64"):
        attention(*tensors)


def test_emulation_needs_the_interpreter() -> None:
    """Triton decides when it is imported, so this takes a process of its own."""
    script = """
import torch
from fusedformer.kernels import emulation
from fusedformer.kernels.attention.op import attention
with emulation.emulated():
    attention(*[torch.zeros(1, 2, 1, 16)] * 3)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "set FUSEDFORMER_EMULATE=1 or TRITON_INTERPRET=1 before the first import of triton" in process.stderr


@pytest.mark.parametrize(
    ("query", "key", "keywords"),
    [
        ((2, 4, 5, 8), (2, 4, 7, 8), {}),
        ((2, 4, 5, 8), (2, 4, 7, 8), {"is_causal": True}),
        ((2, 4, 7, 8), (2, 4, 5, 8), {"is_causal": True, "scale": 0.5}),
        ((2, 4, 5, 8), (2, 2, 7, 8), {"enable_gqa": True}),
        ((2, 4, 5, 8), (2, 1, 7, 8), {}),
        ((2, 4, 5, 8), (4, 7, 8), {}),
        ((4, 5, 8), (2, 7, 8), {"enable_gqa": True, "is_causal": True}),
        ((5, 8), (7, 8), {}),
        ((3, 1, 2, 5, 8), (1, 1, 2, 7, 8), {"is_causal": True}),
        ((0, 4, 5, 8), (0, 4, 7, 8), {}),
        ((2, 0, 5, 8), (2, 0, 7, 8), {}),
        ((2, 4, 5, 8), (2, 4, 0, 8), {}),
    ],
)
def test_sdpa_is_that_of_pytorch(world: World, query: Shape, key: Shape, keywords: dict[str, Any]) -> None:
    tensors = [normal(*shape).to(world.device).requires_grad_() for shape in (query, key, key)]
    _assert_as_pytorch(tensors, keywords)


@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
@pytest.mark.parametrize("query", [(2, 2, 5, 8), (2, 5, 8), (2, 1, 2, 5, 8)])
@pytest.mark.parametrize("mask", [(5, 7), (2, 1, 7)])
def test_sdpa_masks_are_those_of_pytorch(world: World, query: Shape, mask: Shape, additive: bool) -> None:
    """Values of another head dimension too, and the gradient of what is added."""
    shapes = (query, (*query[:-2], 7, 8), (*query[:-2], 7, 12))
    tensors = [normal(*shape).to(world.device).requires_grad_() for shape in shapes]
    given = normal(*mask).to(world.device)
    if additive:
        tensors.append(given.requires_grad_())
        _assert_as_pytorch(tensors, {})
    else:
        _assert_as_pytorch(tensors, {"attn_mask": given > 0})


def _assert_as_pytorch(tensors: list[Tensor], keywords: dict[str, Any]) -> None:
    functions: tuple[Callable[..., Tensor], ...] = (scaled_dot_product_attention, F.scaled_dot_product_attention)
    out, want = (function(*tensors, **keywords) for function in functions)
    torch.testing.assert_close(out, want)
    grads = [torch.autograd.grad(x.square().sum(), tensors) for x in (out, want)]
    torch.testing.assert_close(*grads)


SDPA = (2, 4, 5, 8)


@pytest.mark.parametrize(
    ("shapes", "keywords", "message"),
    [
        ((SDPA, SDPA, SDPA), {"dropout_p": 1.0}, "dropout_p is 1.0, expected 0 to 1"),
        ((SDPA, SDPA, SDPA), {"dropout_p": -0.5}, "dropout_p is -0.5, expected 0 to 1"),
        (
            (SDPA, SDPA, SDPA),
            {"attn_mask": zeros(5, 5, dtype=torch.bool), "is_causal": True},
            "attn_mask is given and is_causal is True",
        ),
        ((SDPA, SDPA, SDPA), {"attn_mask": zeros(5, 5, dtype=torch.int8)}, "attn_mask is int8, expected"),
        ((SDPA, SDPA, SDPA), {"attn_mask": zeros(5, dtype=torch.bool)}, r"attn_mask has shape \(5,\), expected 2"),
        (((8,), SDPA, SDPA), {}, r"query has shape \(8,\), expected 2 dimensions or more"),
        ((SDPA, (2, 2, 5, 8), (2, 2, 5, 8)), {}, r"key has shape \(2, 2, 5, 8\).*enable_gqa=True"),
        ((SDPA, (2, 3, 5, 8), (2, 3, 5, 8)), {"enable_gqa": True}, "query has 4 heads, key has 3"),
        ((SDPA, (3, 4, 5, 8), (3, 4, 5, 8)), {"enable_gqa": True}, "the leading dimensions do not broadcast"),
        ((SDPA, SDPA, (2, 4, 6, 8)), {}, "value has length 6, key has 5"),
        (
            ((2, 2, 4, 5, 8),) * 3,
            {"attn_mask": zeros(3, 5, 5, dtype=torch.bool)},
            r"attn_mask has shape \(3, 5, 5\), which does not broadcast to \(2, 2, 4, 5, 5\)",
        ),
    ],
)
def test_sdpa_bad_input(shapes: tuple[Shape, Shape, Shape], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaled_dot_product_attention(zeros(*shapes[0]), zeros(*shapes[1]), zeros(*shapes[2]), **keywords)
