"""Under `torch.autocast` row-wise ops keep the dtype of their input, forward and backward, and compute as outside.

Their sums are float32 whatever the input, so there is nothing for autocast to make more exact. The bfloat16 of a linear
layer goes on as bfloat16, where PyTorch's own norms and softmax widen it. Attention and cross entropy are tested beside
their ops: the one takes what matrix products take, the other gives a float32 loss.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import World
from torch import Tensor

import fusedformer

WEIGHT, BIAS = torch.linspace(0.5, 1.5, 8), torch.linspace(-1, 1, 8)  # float32, as the parameters of a model are there
MASK = torch.arange(8) < 5
Outputs = Tensor | tuple[Tensor, ...]
OPS: dict[str, Callable[[Tensor], Outputs]] = {
    "layer_norm": lambda x: fusedformer.layer_norm(x, WEIGHT.to(x.device), BIAS.to(x.device)),
    "rms_norm": lambda x: fusedformer.rms_norm(x, WEIGHT.to(x.device)),
    "add_layer_norm": lambda x: fusedformer.add_layer_norm(x, x, WEIGHT.to(x.device), BIAS.to(x.device)),
    "add_rms_norm": lambda x: fusedformer.add_rms_norm(x, x, WEIGHT.to(x.device)),
    "softmax": fusedformer.softmax,
    "masked softmax": lambda x: fusedformer.softmax(x, mask=MASK.to(x.device)),
    "log_softmax": fusedformer.log_softmax,
    "gelu": fusedformer.gelu,
    "bias_gelu": lambda x: fusedformer.bias_gelu(x, BIAS.to(x.device)),
    "bias_relu": lambda x: fusedformer.bias_relu(x, BIAS.to(x.device)),
    "geglu": fusedformer.geglu,
    "swiglu": fusedformer.swiglu,
}


def results(op: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """Outputs and the gradient of x."""
    x = x.detach().requires_grad_()
    outputs = op(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = torch.stack([(output.float() * torch.arange(output.shape[-1]).to(x)).sum() for output in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, x)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_row_wise_ops_compute_as_outside(op: str, dtype: torch.dtype, world: World) -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(world.device, dtype)
    with torch.autocast(world.device.type, torch.bfloat16):
        got = results(OPS[op], x)
    assert {tensor.dtype for tensor in got} == {dtype}
    torch.testing.assert_close(got, results(OPS[op], x))


def test_a_linear_layer_s_result_goes_on_as_it_is(world: World) -> None:
    linear = torch.nn.Linear(8, 8, device=world.device)
    with torch.autocast(world.device.type, torch.bfloat16):
        y = fusedformer.layer_norm(linear(torch.ones(2, 8, device=world.device)), linear.bias)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32
