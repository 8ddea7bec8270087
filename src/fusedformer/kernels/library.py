"""How an op gets into PyTorch: one schema, and PyTorch's own dispatcher chooses the implementation.

    dispatch key                implementation
    CUDA                        csrc/, registered by the compiled extension _C.so, or the Triton launcher given here
    CompositeExplicitAutograd   everything else: PyTorch's own fused kernels (kernels/aten.py), or, in the emulated
                                world, the device code on the CPU
    Meta                        shapes and dtypes only
    Autograd                    the op's gradient, itself an op with a derivative of its own

CUDA tensors without the extension end at the second line too: the same function, through PyTorch. What each op has
to compute is written out in kernels/reference.py, which runs in tests and for the derivatives of backward ops.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels import emulation

NAMESPACE = "fusedformer"
DEVICE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_library = torch.library.Library(NAMESPACE, "DEF")


def define(
    schema: str,
    *,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    launch: Callable[..., Any] | None = None,
) -> None:
    """Define one op.

    Args:
        schema: the op's schema without a namespace, and without default values.
        fallback: the op through PyTorch, for every device that has no kernel.
        fake: gives empty outputs of the right shape, dtype and (contiguous) strides.
        launch: launches the Triton kernel; None where the kernel is in csrc/ and registers itself.
    """
    name = schema[: schema.index("(")]
    _library.define(schema)
    if launch is None:
        emulation.declare(schema)
    device_code = launch or functools.partial(emulation.call, name)

    def host(*args: Any) -> Any:
        return device_code(*args) if emulation.is_active() else fallback(*args)

    _library.impl(name, host, "CompositeExplicitAutograd")
    if launch is not None:
        _library.impl(name, launch, "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Give op `name` its gradient; `save(ctx, inputs, output)` keeps what `backward(ctx, *grads)` needs."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=save, lib=_library)


def vjp(function: Callable[..., Any], inputs: Sequence[Tensor], grads: Any) -> tuple[Tensor, ...]:
    """Gradients of plain PyTorch at `inputs`, themselves differentiable: what a backward op derives from."""
    pull_back = torch.func.vjp(function, *inputs)[1]
    return pull_back(grads)


def check_dtype(function: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless every tensor has a dtype that the implementation for its device computes."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        on_device_code = tensor.is_cuda or emulation.is_active()
        if not tensor.is_floating_point() or (on_device_code and tensor.dtype not in DEVICE_DTYPES):
            allowed = "float32, float16 or bfloat16" + ("" if on_device_code else " (float64 on the CPU too)")
            raise ValueError(f"{function}: {name} is {_short(tensor.dtype)}, expected {allowed}")


def check_device(function: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on one device."""
    devices = {name: str(tensor.device) for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} is on {device}" for name, device in devices.items())
        raise ValueError(f"{function}: {listed}: all tensors must be on one device")


def check_tensor(function: str, name: str, value: object) -> None:
    """Raise ValueError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{function}: {name} is {type(value).__name__}, expected a torch.Tensor")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def extension_status() -> str:
    """Load the compiled CUDA extension once; "loaded", or the reason why the reference serves CUDA tensors instead."""
    path = Path(__file__).parents[1] / "_C.so"
    if not path.exists():
        return f"not built: {path.name} is not in the package (no nvcc when it was installed)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = f"not loadable: {error}"
        warnings.warn(f"fusedformer's compiled extension is {reason}; PyTorch computes instead", stacklevel=2)
        return reason
    return "loaded"


extension_status()
