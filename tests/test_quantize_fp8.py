"""`quantize_fp8`: how far its result is from what it is given, and what it does with special values."""

import math
from typing import Any

import pytest
import torch
from attention_fp8_oracle import dequantized

import fusedformer

pytestmark = pytest.mark.op("attention")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_quantised_elements_are_as_close_as_the_docstring_says(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 70, 3, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 40)).to(dtype)
    quantized, descale = fusedformer.quantize_fp8(x)
    assert (quantized.dtype, quantized.shape, descale.dtype, descale.shape) == (
        torch.float8_e4m3fn,
        x.shape,
        torch.float32,
        (2, 3),
    )
    (back,) = dequantized((quantized, descale))
    largest = x.double().abs().amax((1, 3), keepdim=True)
    bound = torch.maximum(x.double().abs() / 16, largest / 458_752) * (1 + 1e-6)
    assert ((back - x.double()).abs() <= bound).all()
    assert quantized.float().abs().amax((1, 3)).eq(448).all()


def test_quantiser_of_special_values_and_layouts() -> None:
    x = torch.randn(1, 6, 2, 8)
    x[0, 0, 0, 0], x[0, 1, 0, 1], x[0, :, 1] = math.nan, math.inf, 0
    quantized, descale = fusedformer.quantize_fp8(x)
    assert quantized.float().isnan().nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 0, 1]]
    assert descale[0, 0] == x[0, :, 0].nan_to_num(0, posinf=0).abs().max() / 448
    assert descale[0, 1] > 0
    assert quantized[0, :, 1].float().eq(0).all()
    other, same = fusedformer.quantize_fp8(x.transpose(1, 2), layout="bhsd")
    assert torch.equal(other.transpose(1, 2).float().nan_to_num(9), quantized.float().nan_to_num(9))
    assert torch.equal(same, descale)
    empty, ones = fusedformer.quantize_fp8(torch.empty(2, 0, 3, 8))
    assert (empty.shape, ones.tolist()) == ((2, 0, 3, 8), [[1.0] * 3] * 2)


@pytest.mark.parametrize(
    ("x", "layout", "message"),
    [
        (torch.ones(2, 3, 4), "bshd", r"x has shape \(2, 3, 4\), expected 4 dimensions \(bshd\)"),
        (torch.ones(1, 2, 3, 4, dtype=torch.int32), "bshd", "x is int32, expected float32, float16 or bfloat16"),
        (torch.ones(1, 2, 3, 4), "bdsh", "layout is 'bdsh', expected 'bshd' or 'bhsd'"),
        (3.0, "bshd", "x is float, expected a torch.Tensor"),
    ],
    ids=["rank", "dtype", "layout", "type"],
)
def test_quantiser_refuses(x: Any, layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedformer.quantize_fp8(x, layout=layout)
