"""The FLOPs of a model's step: of its matrix products, convolutions and attentions, by a trace that computes nothing.

The model is traced forward on the meta device, whose tensors have no data; keys that causal attention or a window hides
cost nothing, those that a mask of numbers hides do. A backward costs twice its forward, whatever its kernels compute
again. Norms, activations, softmax, loss and optimizer do not count: they are no work of the matrix units.
Source: "model FLOPs", Chowdhery et al., "PaLM", 2022 (arXiv:2204.02311), appendix B.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fusedformer.benchmarks.harness.comparison import Work
from fusedformer.benchmarks.profile.work import product_flops, tensors
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention

FORWARD_ALONE, WITH_BACKWARD = 1, 3  # in forwards


def model_work(call: Callable[[], object], forwards: int = FORWARD_ALONE) -> Work:
    """The work of `call`, a forward on the meta device, or of as many times its FLOPs."""
    with _Products() as counted, _OurAttention():
        call()
    return Work(forwards * counted.flops, None, "TFLOP")


class _Products(TorchDispatchMode):
    """Adds up the products of what runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode PyTorch leaves taking ops apart to us
            out = func.decompose(*args, **(kwargs or {}))
        if out is NotImplemented:
            out = func(*args, **(kwargs or {}))
            self.flops += product_flops(func._schema.name.partition("::")[2], args, tensors(out))
        return out


class _OurAttention(TorchFunctionMode):
    """PyTorch's attention by our op: on the meta device PyTorch's own is products with every key, hidden or not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted = scaled_dot_product_attention if func is F.scaled_dot_product_attention else func
        return wanted(*args, **(kwargs or {}))
