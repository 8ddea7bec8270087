"""The ops of csrc/ in one step from Python to the kernel, with gradients in C++: csrc/eager.cpp.

It is built for one version of PyTorch and of Python. Beside others, or where it was not built, `status` says so, each
function here gives None, and the op takes the way through PyTorch's dispatcher: the same results, in more time. They
give None too for a call that is not of the usual kind: other devices, subclasses, modes, transforms, a profiler, an
argument that is no good. torch.compile cannot look into them, so callers ask `is_compiling` first.

Functions take what the public ones do, with every default given; None is of a weight, bias, mask or seed.
"""

import contextlib
import ctypes
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


def _load() -> tuple[Any, str]:
    if os.environ.get("FUSEDFORMER_EAGER", "1") in ("", "0"):
        return None, "off: FUSEDFORMER_EAGER is 0"
    try:
        module: Any = importlib.import_module("fusedformer._eager")
    except ModuleNotFoundError:
        return None, "not built for this Python, or not at all"
    except ImportError as error:
        return None, f"not loadable: {error}"
    if module.torch_version != torch.__version__.partition("+")[0]:
        return None, f"built for PyTorch {module.torch_version}, and this is {torch.__version__}"
    return module, "loaded"


_module, _status = _load()
_connect: dict[str, Callable[[int], int]] = (
    {} if _module is None else {"cuda": _module.connect_cuda, "cpu": _module.connect_cpu}
)


def status() -> str:
    """Either "loaded", or the reason why calls take the way through the dispatcher."""
    return _status


def _function(name: str) -> Callable[..., Any]:
    return getattr(_module, name, _declined)


def _declined(*_: Any) -> None:
    return None


gelu = _function("gelu")  # x, tanh
bias_activation = _function("bias_activation")  # x, bias, activation
glu = _function("glu")  # x, up, activation
softmax = _function("softmax")  # x
log_softmax = _function("log_softmax")  # x
masked_softmax = _function("masked_softmax")  # x, mask, causal, scale
layer_norm = _function("layer_norm")  # x, weight, bias, eps
rms_norm = _function("rms_norm")  # x, weight, eps
add_layer_norm = _function("add_layer_norm")  # x, residual, weight, bias, seed, eps, dropout_p: y and s
add_rms_norm = _function("add_rms_norm")  # x, residual, weight, seed, eps, dropout_p: y and s
cross_entropy = _function("cross_entropy")  # logits, target, weight, ignore_index, smoothing, z_loss, mean


def connect(device: str, library: Path | None) -> None:
    """Serve tensors of `device`, "cuda" or "cpu", by the operators in `library`, a build of csrc/; None: no longer."""
    global _status
    if _module is None:
        return
    try:
        _connect[device](0 if library is None else _address_of_functions(library))
    except (AttributeError, ValueError) as error:  # a library of older sources has none, or others
        _status = f"of no use: {error}"


@functools.cache
def _address_of_functions(library: Path) -> int:
    functions = ctypes.CDLL(str(library)).fusedformer_functions
    functions.restype = ctypes.c_void_p
    return functions()


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Inside the block, every call takes the way through the dispatcher."""
    before = {device: take(0) for device, take in _connect.items()}
    try:
        yield
    finally:
        for device, address in before.items():
            _connect[device](address)
