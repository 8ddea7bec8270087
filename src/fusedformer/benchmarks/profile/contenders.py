"""Which attention a model computes with, whatever it was written for: ours, PyTorch's fused one, or plain products.

A call of our attention, or of torch.nn.functional.scaled_dot_product_attention, is caught below the model and computed
by the contender, so a model needs no change.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fusedformer.kernels.attention import sdpa as our_sdpa
from fusedformer.kernels.attention.decode.op import attention_decode
from fusedformer.kernels.attention.extras import Extras

OURS, SDPA, MATH = "ours", "sdpa", "math"
CONTENDERS = (OURS, SDPA, MATH)
SCOPE = "@attention"
"""The name under which a trace knows what an attention computes, as if it were a module."""

_FWD = torch.ops.fusedformer.attention_fwd.default
_DECODE = torch.ops.fusedformer.attention_decode.default
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention.default
_FLASH_FOR_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
assert attention_decode is not None  # importing the module defines the op


_active: list["Attention"] = []


def in_recomputation() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """Contexts of a checkpoint's forward and of its recomputation, which PyTorch runs outside of all modes."""
    return contextlib.nullcontext(), _active[-1] if _active else contextlib.nullcontext()


class Attention(TorchFunctionMode):
    """A context in which models compute attention by one contender.

    Args:
        contender: one of CONTENDERS.
        device_type: "cuda" or "cpu": whose kernel PyTorch's fused attention is, for tensors of the meta device.
        scope: enters and leaves the scope of a trace.
    """

    def __init__(self, contender: str, device_type: str, scope: Callable[[str], Any]) -> None:
        super().__init__()
        if contender not in CONTENDERS:
            raise ValueError(f"unknown attention {contender!r}: choose from {', '.join(CONTENDERS)}")
        self.contender, self.device_type, self.scope = contender, device_type, scope

    def __enter__(self) -> "Attention":
        _active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _active.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with self.scope(SCOPE):
                return self._sdpa(*args, **kwargs)
        if func in (_FWD, _DECODE) and self.contender != OURS:
            with self.scope(SCOPE):
                return self._instead(func, *args)
        return func(*args, **kwargs)

    def _instead(self, func: Any, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, None]:
        """Our op by PyTorch's attention, which has no log-sum-exp to give."""
        if func is _DECODE:
            slopes, scale, softcap, left, _, _, lengths, length, *places = settings
            if slopes is not None or softcap or left is not None or lengths is not None or any(places):
                raise ValueError(f"{self.contender}: takes a cache as it is only, without slopes, softcap or windows")
            k, v, mask, causal = k[:, :length], v[:, :length], None, False
        else:
            extras = Extras(*settings)
            mask, scale, causal = self._mask(extras, q, k), extras.scale, extras.window(q, k)[1] is not None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = self._sdpa(q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=True)
        return out.transpose(1, 2), None

    def _mask(self, extras: Extras, q: Tensor, k: Tensor) -> Tensor | None:
        """What `is_causal` does not say, as a mask.

        Raises:
            ValueError: PyTorch's attention has no such setting.
        """
        unknown = [name for name in ("slopes", "sinks", "starts_q") if getattr(extras, name) is not None]
        left, right = extras.window(q, k)
        if unknown or extras.softcap or left is not None or right not in (None, 0):
            raise ValueError(f"{self.contender}: has no {', '.join(unknown) or 'softcap or window'}")
        if extras.bias is not None:
            return extras.bias if extras.mask is None else extras.bias.masked_fill(~extras.mask, float("-inf"))
        if right == 0 and q.shape[1] != k.shape[1]:
            return torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(k.shape[1] - q.shape[1])
        return extras.mask

    def _sdpa(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        settings: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        if self.contender == OURS:
            return our_sdpa.scaled_dot_product_attention(q, k, v, attn_mask, enable_gqa=enable_gqa, **settings)
        if self.contender == MATH:
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, k, v, attn_mask, enable_gqa=enable_gqa, **settings)
        return self._fused(q, k, v, attn_mask, settings)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, settings: dict[str, Any]) -> Tensor:
        """PyTorch's flash attention where nothing is masked, else what PyTorch chooses."""
        if self.device_type == "cpu" or attn_mask is not None:  # these kernels want a key head for each query head
            k, v = (_repeated(x, q.shape[1]) for x in (k, v))
        if attn_mask is not None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask, **settings)
        if not q.is_meta:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **settings)
        # The meta device would choose plain products.
        dropout_p, is_causal, scale = settings["dropout_p"], settings["is_causal"], settings["scale"]
        if self.device_type == "cpu":
            return _FLASH_FOR_CPU(q, k, v, dropout_p, is_causal, scale=scale)[0]
        return _FLASH(q, k, v, dropout_p, is_causal, False, scale=scale)[0]


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Key heads for as many query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
