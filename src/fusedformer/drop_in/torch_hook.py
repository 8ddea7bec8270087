"""`F.scaled_dot_product_attention` itself through our kernels, for code that nobody wants to touch.

    F.scaled_dot_product_attention -> aten::scaled_dot_product_attention, which PyTorch's dispatcher looks up
        CUDA tensors    `fusedformer.scaled_dot_product_attention` while registered, else what PyTorch chooses
        CPU tensors     PyTorch: its flash attention for the CPU is what we would call; in the emulated world as CUDA

It is registered and undone by PyTorch's own means, a `torch.library.Library`, and from PyTorch 2.13 on listed among its
flash attention implementations. The place is the op, before PyTorch has chosen among its implementations: the hook's
usual one, after that choice, sees neither masks nor float32, and nothing at all where cuDNN is preferred.
Source: PyTorch, torch/nn/attention/_registry.py and _fa4.py.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fusedformer.drop_in import calls
from fusedformer.kernels import emulation
from fusedformer.kernels.attention.sdpa import scaled_dot_product_attention

NAME = "fusedformer"
_pytorch = torch.ops.aten.scaled_dot_product_attention.default
# Others, DTensor for one, have ways of their own with PyTorch's attention.
_KINDS = (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)
# PyTorch's list of flash attention implementations, of which one at a time is active; none before PyTorch 2.13.
_listed = hasattr(torch.nn.attention, "register_flash_attention_impl")


class _Override:
    """The op's kernels in PyTorch's dispatcher, until `remove`."""

    def __init__(self) -> None:
        self._library = torch.library.Library("aten", "IMPL")
        for device in ("CUDA", "CPU") if emulation.is_active() else ("CUDA",):
            for key in (f"Autograd{device}", device):  # the second for tensors of inference mode
                self._library.impl("scaled_dot_product_attention", _sdpa, key)

    def remove(self) -> None:
        self._library._destroy()


_active: _Override | None = None
_before: str | None = None  # the implementation that was active


class Registration(contextlib.AbstractContextManager["Registration"]):
    """What `register_torch` returns: a context manager that ends what this call began."""

    def __init__(self, began: bool) -> None:
        self._began = began

    def __exit__(self, *_: Any) -> None:
        if self._began:
            unregister_torch()


def register_torch() -> Registration:
    """Let `torch.nn.functional.scaled_dot_product_attention` go through our kernels, until `unregister_torch`.

        with fusedformer.register_torch():
            loss = model(x)

    It holds for CUDA tensors in the whole process, also for what is called from C++; CPU tensors stay with PyTorch
    (in the emulated world they take the device code). PyTorch computes, and `fusedformer.report` says why, where we
    refuse: other dtypes, subclasses of Tensor, arguments that do not fit, or flash attention switched off by
    `torch.nn.attention.sdpa_kernel`. `torch.vmap` takes the function apart before it comes here, uncounted. Dropout
    drops other weights than PyTorch's. Of two calls the second does nothing.
    From PyTorch 2.13 on `torch.nn.attention.current_flash_attention_impl()` is "fusedformer" meanwhile.
    """
    global _active, _before
    if _active is not None and (not _listed or torch.nn.attention.current_flash_attention_impl() == NAME):
        return Registration(began=False)
    if _listed:
        _before = torch.nn.attention.current_flash_attention_impl()
        torch.nn.attention.register_flash_attention_impl(NAME, register_fn=_override)
        torch.nn.attention.activate_flash_attention_impl(NAME)
    else:
        _override()
    return Registration(began=True)


def unregister_torch() -> None:
    """Give PyTorch its attention back, with the implementation that was active before `register_torch`."""
    global _active
    if _active is None:
        return
    if _listed and torch.nn.attention.current_flash_attention_impl() == NAME:
        torch.nn.attention.restore_flash_attention_impl()
        if _before is not None:
            torch.nn.attention.activate_flash_attention_impl(_before)
    elif not _listed:
        _active.remove()
    _active = None


def is_registered() -> bool:
    """Whether `register_torch` is in force."""
    return _active is not None


def _override() -> _Override:
    global _active
    _active = _Override()
    return _active


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """aten::scaled_dot_product_attention: ours, or PyTorch's, counted with the reason, where we refuse."""
    given = (query, key, value, attn_mask, dropout_p, is_causal)
    reason = _refusal(query, key, value, attn_mask)
    if reason is None:
        try:
            out = scaled_dot_product_attention(*given, scale=scale, enable_gqa=enable_gqa)
        except ValueError as error:
            reason = str(error)
        else:
            calls.served(None, "attention", query)
            return out
    calls.fell_back(None, "attention", reason)
    return _pytorch.decompose(*given, scale=scale, enable_gqa=enable_gqa)


def _refusal(*tensors: Tensor | None) -> str | None:
    """Why PyTorch is to compute, if that is known before the arguments are checked."""
    if not torch.backends.cuda.flash_sdp_enabled():
        return "flash attention is switched off: torch.nn.attention.sdpa_kernel, torch.backends.cuda.enable_flash_sdp"
    for tensor in tensors:
        if tensor is not None and type(tensor) not in _KINDS:
            return f"{type(tensor).__name__} is not a plain tensor"
    return None
