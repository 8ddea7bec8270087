"""torch.nn.functional.scaled_dot_product_attention, held to one of its kernels at a time."""

import contextlib
import functools
import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusedformer.benchmarks.contenders.plain import visible
from fusedformer.benchmarks.harness.implementation import Function, MissingError

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
NO_KERNEL = ("No available kernel", "No viable backend")


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool, window: int | None = None
) -> Tensor:
    """By the kernel that PyTorch chooses; a window is a mask to it, as is a causal bias."""
    if window is not None or (bias is not None and causal):
        seen = _mask(q.shape[1], k.shape[1], causal, window, q.device)
        bias = seen if bias is None else bias.masked_fill(~seen, float("-inf"))
        causal = False
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def pinned(function: Function) -> Mapping[str, Function]:
    """`function`, which calls SDPA, by each of its kernels."""
    return {name: functools.partial(_by, backend, function) for name, backend in BACKENDS.items()}


def _by(backend: SDPBackend, function: Function, *inputs: Tensor, **options: object) -> Tensor:
    """One call.

    Raises:
        MissingError: that kernel does not take these inputs here, for the reasons that PyTorch gives.
    """
    try:
        with sdpa_kernel(backend):
            return function(*inputs, **options)
    except RuntimeError as error:
        if not str(error).startswith(NO_KERNEL):
            raise
    raise MissingError(f"no such kernel of PyTorch's for these inputs here{_why(backend, function, inputs, options)}")


def _why(backend: SDPBackend, function: Function, inputs: tuple[Tensor, ...], options: dict[str, object]) -> str:
    """What PyTorch warns of when it finds no kernel, all but where in its sources it does."""
    with warnings.catch_warnings(record=True) as caught, sdpa_kernel(backend):
        warnings.simplefilter("always")
        with contextlib.suppress(RuntimeError):
            function(*inputs, **options)
    reasons = [str(warning.message).partition(" (Triggered")[0] for warning in caught]
    chosen = [reason for reason in reasons if not reason.endswith("because:") and "used" not in reason]
    return f": {' '.join(chosen)}" if chosen else ""


@functools.lru_cache(maxsize=1)  # the same for every call of a case
def _mask(Sq: int, Sk: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    seen = visible(Sq, Sk, causal, window, device)
    assert seen is not None  # a window or causal hides something
    return seen
