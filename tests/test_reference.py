"""The definitions in kernels/reference.py against torch.nn.functional, in float64: the oracle is right."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.kernels import aten, reference
from fusedformer.kernels.attention import aten as attention_aten
from fusedformer.kernels.attention import reference as attention_reference

EXTREMES = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, -3.4e38])


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gradients(y: Tensor, inputs: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, dy)


@pytest.mark.op("layer_norm")
@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 3, 5)])
def test_layer_norm(shape: tuple[int, ...]) -> None:
    x, dy, weight, bias = randn(*shape).requires_grad_(), randn(*shape, seed=1), randn(shape[-1]), randn(shape[-1])
    weight.requires_grad_()
    bias.requires_grad_()
    expected = F.layer_norm(x, shape[-1:], weight, bias, 1e-3)
    y, mean, rstd = reference.layer_norm_fwd(x.detach(), weight.detach(), bias.detach(), 1e-3)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mean, x.detach().mean(-1))
    torch.testing.assert_close(rstd, (x.detach().var(-1, correction=0) + 1e-3).rsqrt())
    got = reference.layer_norm_bwd(dy, x.detach(), weight.detach(), mean, rstd, True, True)
    for mine, other in zip(got, gradients(expected, [x, weight, bias], dy), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.op("rms_norm")
@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 3, 5)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, dy, weight = randn(*shape).requires_grad_(), randn(*shape, seed=1), randn(shape[-1]).requires_grad_()
    expected = F.rms_norm(x, shape[-1:], weight, 1e-3)
    y, rstd = reference.rms_norm_fwd(x.detach(), weight.detach(), 1e-3)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(rstd, (x.detach().square().mean(-1) + 1e-3).rsqrt())
    got = reference.rms_norm_bwd(dy, x.detach(), weight.detach(), rstd, True)
    for mine, other in zip(got, gradients(expected, [x, weight], dy), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.op("add_layer_norm")
def test_dropout_keeps_the_mean() -> None:
    x = torch.ones(100, 401, dtype=torch.float64)
    dropped = reference.dropout(x, torch.tensor([5]), 0.25)
    assert set(dropped.unique().tolist()) == {0.0, 4 / 3}
    assert abs(dropped.mean() - 1) < 4 * (0.25 / 0.75 / x.numel()) ** 0.5
    assert torch.equal(reference.dropout(x, None, 0.25), x)


@pytest.mark.op("softmax")
def test_softmax() -> None:
    x, dy = randn(4, 9).requires_grad_(), randn(4, 9, seed=1)
    expected = F.softmax(x, -1)
    y = reference.softmax_fwd(x.detach())
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(reference.softmax_bwd(dy, y), gradients(expected, [x], dy)[0])
    hidden = torch.full((2, 9), -math.inf, dtype=torch.float64)
    assert torch.equal(reference.softmax_fwd(hidden), torch.zeros_like(hidden))


@pytest.mark.op("log_softmax")
def test_log_softmax() -> None:
    x, dy = randn(4, 9).requires_grad_(), randn(4, 9, seed=1)
    expected = F.log_softmax(x, -1)
    y = reference.log_softmax_fwd(x.detach())
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(reference.log_softmax_bwd(dy, y), gradients(expected, [x], dy)[0])
    hidden = torch.full((2, 9), -math.inf, dtype=torch.float64)
    assert torch.equal(reference.log_softmax_fwd(hidden), hidden)


@pytest.mark.op("masked_softmax")
@pytest.mark.parametrize("causal", [False, True])
def test_masked_softmax(causal: bool) -> None:
    x, dy, bias = randn(2, 3, 5).requires_grad_(), randn(2, 3, 5, seed=1), randn(2, 3, 5, seed=2)
    future = torch.ones(3, 5, dtype=torch.bool).triu(3) & causal
    bias[0, 1, 2] = -math.inf
    for mask in (bias, bias < 0.5):
        added = bias if mask is bias else torch.zeros_like(bias).masked_fill(~mask, -math.inf)
        expected = F.softmax((0.7 * x + added).masked_fill(future, -math.inf), -1)
        y = reference.masked_softmax_fwd(x.detach(), mask, causal, 0.7)
        torch.testing.assert_close(y, expected)
        got = reference.masked_softmax_bwd(dy, y, causal, 0.7)
        torch.testing.assert_close(got, gradients(expected, [x], dy)[0])


@pytest.mark.op("cross_entropy")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, torch.linspace(0.5, 1.5, 9, dtype=torch.float64)])
def test_cross_entropy(weight: Tensor | None, smoothing: float) -> None:
    x, dloss, dlse = randn(5, 9).requires_grad_(), randn(5, seed=1), randn(5, seed=2)
    target = torch.tensor([0, 8, -7, 3, 3])
    expected = F.cross_entropy(x, target, weight, ignore_index=-7, label_smoothing=smoothing, reduction="none")
    expected_lse = x.logsumexp(-1).where(target != -7, 0.0)
    settings = (target, weight, -7, smoothing)
    loss, lse, maximum, total = reference.cross_entropy_fwd(x.detach(), *settings)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(lse, expected_lse)
    got = reference.cross_entropy_bwd(dloss, dlse, x.detach(), *settings[:2], maximum, total, *settings[2:])
    (expected_dx,) = gradients(expected @ dloss + expected_lse @ dlse, [x], torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(got, expected_dx)


@pytest.mark.op("gelu")
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(tanh: bool) -> None:
    x, dy = torch.linspace(-9, 9, 401, dtype=torch.float64).requires_grad_(), randn(401)
    expected = F.gelu(x, approximate="tanh" if tanh else "none")
    torch.testing.assert_close(reference.gelu_fwd(x.detach(), tanh), expected)
    torch.testing.assert_close(reference.gelu_bwd(dy, x.detach(), tanh), gradients(expected, [x], dy)[0])


ACTIVATIONS = [
    (reference.GELU_ERF, F.gelu),
    (reference.GELU_TANH, partial(F.gelu, approximate="tanh")),
    (reference.SILU, F.silu),
    (reference.RELU, F.relu),
]


@pytest.mark.op("bias_activation")
@pytest.mark.parametrize(("number", "function"), ACTIVATIONS)
def test_bias_activation(number: int, function: Callable[[Tensor], Tensor]) -> None:
    x, bias, dy = randn(2, 3, 8).requires_grad_(), randn(8, seed=1).requires_grad_(), randn(2, 3, 8, seed=2)
    expected = function(x + bias)
    inputs = (x.detach(), bias.detach(), number)
    torch.testing.assert_close(reference.bias_activation_fwd(*inputs), expected)
    got = reference.bias_activation_bwd(dy, *inputs, True)
    for mine, other in zip(got, gradients(expected, [x, bias], dy), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.op("glu")
@pytest.mark.parametrize(("number", "function"), ACTIVATIONS[:3])
def test_glu(number: int, function: Callable[[Tensor], Tensor]) -> None:
    x, dy = randn(2, 3, 8).requires_grad_(), randn(2, 3, 4, seed=2)
    gate, up = x.chunk(2, -1)
    expected = function(gate) * up
    (dx,) = gradients(expected, [x], dy)
    assert reference.glu_bwd(dy, x.detach(), None, number)[1].numel() == 0
    for first, second in ((x.detach(), None), (gate.detach(), up.detach())):
        torch.testing.assert_close(reference.glu_fwd(first, second, number), expected)
        got = reference.glu_bwd(dy, first, second, number)
        torch.testing.assert_close(torch.cat(got, -1) if second is not None else got[0], dx)


def test_fallbacks_take_what_the_definitions_take() -> None:
    """kernels/aten.py in float64, to rounding, and with the same dtypes, shapes and strides."""
    x, dy, weight = randn(5, 3, 8), randn(5, 3, 8, seed=1), randn(8)
    mean, rstd = reference.layer_norm_fwd(x, None, None, 1e-5)[1:]
    seed = torch.tensor([5])
    calls: list[tuple[str, tuple[object, ...]]] = [
        ("layer_norm_fwd", (x, weight, weight, 1e-5)),
        ("layer_norm_bwd", (dy, x, weight, mean, rstd, True, True)),
        ("layer_norm_bwd", (dy, x, weight, mean, rstd, False, True)),
        ("layer_norm_bwd", (dy, x, None, mean, rstd, False, False)),
        ("layer_norm_bwd", (dy, x, None, mean, rstd, False, True)),
        ("layer_norm_bwd", (dy[..., :1], x[..., :1], weight[:1], mean, rstd, True, True)),
        ("rms_norm_fwd", (x.transpose(0, 1), weight, 1e-5)),
        ("rms_norm_bwd", (dy, x, weight, rstd, True)),
        ("add_layer_norm_fwd", (x, dy, weight, weight, seed, 1e-5, 0.3)),
        ("add_layer_norm_bwd", (dy, x, x, weight, mean, rstd, seed, 0.3, True, True)),
        ("add_layer_norm_bwd", (dy, None, x, None, mean, rstd, None, 0.0, False, False)),
        ("add_rms_norm_fwd", (x, dy, None, None, 1e-5, 0.0)),
        ("add_rms_norm_bwd", (dy, x, x, weight, rstd, seed, 0.3, True)),
        ("softmax_fwd", (x.transpose(0, 2),)),
        ("softmax_fwd", (torch.full((2, 3), -math.inf),)),
        ("softmax_bwd", (dy, x)),
        ("bias_activation_fwd", (x.transpose(0, 1), weight, reference.RELU)),
        ("bias_activation_bwd", (dy, x, weight, reference.GELU_TANH, True)),
        ("bias_activation_bwd", (dy, x, weight, reference.RELU, False)),
        ("glu_fwd", (x.transpose(0, 1), None, reference.SILU)),
        ("glu_bwd", (dy, x, dy, reference.SILU)),
        ("glu_bwd", (dy[..., :4], x, None, reference.GELU_ERF)),
        ("glu_fwd", (EXTREMES, torch.ones(5), reference.SILU)),
        ("glu_bwd", (torch.ones(5), EXTREMES, torch.ones(5), reference.SILU)),
        ("log_softmax_fwd", (x.transpose(0, 2),)),
        ("log_softmax_fwd", (torch.full((2, 3), -math.inf),)),
        ("log_softmax_bwd", (dy, x)),
        ("gelu_fwd", (x.transpose(0, 1), True)),
        ("gelu_bwd", (dy, x, False)),
        ("gelu_fwd", (EXTREMES, False)),
        ("gelu_bwd", (dy[0, 0, :5].float(), EXTREMES, True)),
    ]
    for name, arguments in calls:
        got, expected = getattr(aten, name)(*arguments), getattr(reference, name)(*arguments)
        for mine, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, expected)), strict=True):
            torch.testing.assert_close(mine, other, equal_nan=True, msg=f"{name} differs from its definition")
            assert mine.is_contiguous()


def test_fallbacks_wait_for_no_device() -> None:
    """On a device without data, as with a GPU that is still computing it, nothing can be decided by values."""
    x = torch.empty(3, 8, device="meta")
    for out in (aten.softmax_fwd(x), aten.gelu_fwd(x, False), aten.gelu_bwd(x, x, True)):
        assert out.shape == x.shape
    target = torch.empty(3, device="meta", dtype=torch.int64)
    assert aten.cross_entropy_fwd(x, target, None, -100, 0.0)[0].shape == (3,)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 1), (1, 33), (33, 33), (5, 33), (33, 5)])
@pytest.mark.parametrize("bottom_right", [False, True])
def test_fallback_attention(seqlen_q: int, seqlen_k: int, causal: bool, bottom_right: bool) -> None:
    q, k, v = (randn(2, length, 3, 16, seed=seed) for seed, length in enumerate((seqlen_q, seqlen_k, seqlen_k)))
    settings = (*(None,) * 7, 0.3, 0.0, 0.0, None, 0 if causal else None, bottom_right)
    wanted = [True, True, False, False, False]
    out, lse = attention_reference.attention_fwd(q, k, v, *settings)
    dout = randn(*out.shape, seed=3)
    expected = (out, lse, *attention_reference.attention_bwd(dout, None, out, lse, wanted, q, k, v, *settings))
    forward = attention_aten.attention_fwd(q, k, v, *settings)
    got = (*forward, *attention_aten.attention_bwd(dout, None, out, lse, wanted, q, k, v, *settings))
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)
        assert mine.is_contiguous()


def test_fallback_attention_hides_nan() -> None:
    q, k, v = (randn(1, 9, 2, 8, seed=seed) for seed in range(3))
    k[:, 5], v[:, 6] = math.nan, math.inf
    settings = (*(None,) * 7, 0.3, 0.0, 0.0, None, 0, False)
    got = attention_aten.attention_fwd(q, k, v, *settings)
    expected = attention_reference.attention_fwd(q, k, v, *settings)
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)
    assert got[0][:, :5].isfinite().all()
