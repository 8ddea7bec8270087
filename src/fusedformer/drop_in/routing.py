"""Whether a drop-in computes a call itself, or leaves it to the code it was put in place of.

Where there is no kernel, on a CPU above all, both compute through PyTorch, and the original is not slower.
"""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fusedformer.kernels import emulation, explain, library

OPS = (
    "attention", "layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "gelu", "glu", "softmax", "log_softmax",
    "cross_entropy",
)  # fmt: skip
_PLAIN = (Tensor, nn.Parameter)


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


# Known when the package is imported: the extension is loaded then, or not at all.
_ON_CUDA = frozenset(op for op in OPS if _has_kernel(f"{library.NAMESPACE}::{op}_fwd", "CUDA"))
_ATEN = {"layer_norm": "layer_norm", "rms_norm": "rms_norm", "softmax": "softmax.int", "log_softmax": "log_softmax.int"}
_IN_FLOAT32 = frozenset(op for op, name in _ATEN.items() if _has_kernel(f"aten::{name}", "AutocastCUDA"))


def has_kernel(op: str, x: Tensor) -> bool:
    """Whether a kernel of ours, or its emulation, would compute `op` of x; in `explain` it is asked about one."""
    return (x.is_cuda and op in _ON_CUDA) or emulation.is_active() or explain.is_active()


def has_cuda_kernel(op: str) -> bool:
    """Whether this installation has a kernel of `op` for CUDA tensors."""
    return op in _ON_CUDA


def refusal(module: nn.Module, x: Tensor) -> str | None:
    """Why a tensor or a module's parameters are not for a kernel; None if they are."""
    if x.dtype not in library.DEVICE_DTYPES:
        return f"{library.short(x.dtype)} is for PyTorch"
    for tensor in (x, *module._parameters.values()):
        if tensor is None or type(tensor) in _PLAIN:
            continue
        if not isinstance(tensor, FakeTensor):
            return f"{type(tensor).__name__} is a subclass of Tensor with operations of its own"
    return "a nested tensor is for PyTorch" if x.is_nested else None


def autocast(op: str, x: Tensor) -> Tensor:
    """x as autocast on a GPU hands it to PyTorch's own op, which may want float32, so that the result is that too."""
    return x.float() if op in _IN_FLOAT32 and is_autocast(x) else x


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for a GPU that x is on."""
    return x.is_cuda and torch.is_autocast_enabled("cuda")
