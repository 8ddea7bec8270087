"""`attn_implementation="fusedformer"` of Hugging Face transformers: attention of every model that asks its interface.

Legend: B batch, H query heads, Hkv key heads, Sq and Sk lengths, D head dimension, Dv of v. transformers calls one
with q, k and v, (B, H, Sq, D) and (B, Hkv, Sk, D or Dv), and a mask that a second function has made before, in
transformers_masks.py. Registering the first alone would lose every padding mask, for transformers makes none then.
Source: transformers, documentation of "attention interface".
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fusedformer.drop_in import calls, transformers_plain
from fusedformer.drop_in.transformers_masks import PatternMask, make_mask
from fusedformer.drop_in.transformers_plain import dense
from fusedformer.kernels.attention.op import attention

NAME = "fusedformer"
# What a model's own attention function may take besides, and this one takes too, or finds in the mask.
_KNOWN = {
    "module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal", "sliding_window", "softcap",
    "s_aux", "position_bias", "cu_seq_lens_q", "cu_seq_lens_k", "output_attentions", "kwargs",
}  # fmt: skip


def register_transformers() -> str:
    """Make `attn_implementation="fusedformer"` known to Hugging Face transformers, for models made or set so later.

        name = fusedformer.register_transformers()
        model = AutoModelForCausalLM.from_pretrained(..., attn_implementation=name)  # or
        model.set_attn_implementation(name)

    Grouped queries, sliding windows, sinks, soft caps, position biases, static caches and packed sequences (restarting
    `position_ids`, or `cu_seq_lens_q` and `cu_seq_lens_k`) are computed as such; padding is read as (B, Sk), not
    (B, Sq, Sk). Queries of padding get zeros. What it cannot do (attention weights, head masks) the model's own eager
    function computes, and `fusedformer.report` says so. Calling it again changes nothing.

    Returns:
        "fusedformer".

    Raises:
        ImportError: transformers is missing, or older than 4.53.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(f"register_transformers: needs transformers 4.53 or newer: {error}") from error
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, make_mask)
    return NAME


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of transformers' AttentionInterface.

    Args:
        module: the layer that calls; where no mask is given, its `is_causal` holds.
        query: (B, H, Sq, D).
        key: (B, Hkv, Sk, D).
        value: (B, Hkv, Sk, Dv).
        attention_mask: (B, 1, Sq, Sk), bool or added to the scores.
        scaling: factor of the scores; 1 / sqrt(D) if None.
        dropout: probability with which a weight is dropped.
        is_causal: hide keys after a query, where there is no mask.
        softcap: bound of the scores.
        s_aux: (H,) sinks.
        position_bias: (1 or B, H, Sq, Sk), added to the scores.
        cu_seq_lens_q: (sequences + 1,) int32, packed sequences, where there is neither a mask nor padding.
        cu_seq_lens_k: the same of keys.
        others: what else the layer was given.

    Returns:
        (B, Sq, H, Dv), and None for the attention weights.

    Raises:
        ValueError: as `fusedformer.attention`; a paged cache, of continuous batching, is given.
    """
    if others.get("cache") is not None:
        raise ValueError(f"{NAME}: cache is {type(others['cache']).__name__}, expected none: no continuous batching")
    is_causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if is_causal and query.shape[2] > 1:  # the first query faces the first key; later keys are room in a cache
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        attention_mask = _causal_mask(query, key)
    bias = None if position_bias is None else position_bias[..., : key.shape[2]]
    if reason := _refusal(type(module).__module__, others):
        calls.fell_back(module, "attention", reason)
        named = {"softcap": softcap, "s_aux": s_aux, "position_bias": bias, **others}
        given = {name: value for name, value in named.items() if value is not None}
        mask = _additive(attention_mask, query, key)
        return _eager(module)(module, query, key, value, mask, scaling=scaling, dropout=dropout, **given)
    calls.served(module, "attention", query)
    packed = cu_seq_lens_q, cu_seq_lens_k
    settings = {"scale": scaling, "softcap": softcap or 0.0, "sinks": s_aux, "dropout_p": dropout}
    if transformers_plain.fits(query, packed, settings):
        return transformers_plain.attend(query, key, value, attention_mask, bias, settings), None
    return _attend(query, key, value, attention_mask, bias, packed, settings), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None,
    packed: tuple[Tensor | None, Tensor | None], settings: dict[str, Any],
) -> Tensor:  # fmt: skip
    """(B, Sq, H, Dv): attention with what is hidden handed over in the cheapest form."""
    batch = max(query.shape[0], key.shape[0])  # learned queries, for one, have a batch of 1
    q, k, v = (x.expand(batch, -1, -1, -1).transpose(1, 2) for x in (query, key, value))
    pattern = mask if isinstance(mask, PatternMask) and not mask.is_computed else None
    is_free = mask is None or (pattern is not None and pattern.padding is None)
    starts = packed if pattern is None or pattern.starts is None else (pattern.starts, pattern.starts)
    is_packed = starts[0] is not None and starts[1] is not None
    if is_free and is_packed and bias is None and q.shape[1] == k.shape[1]:
        rows = (x.flatten(0, 1) for x in (q, k, v))
        window = None if pattern is None else pattern.window
        out = attention(*rows, cu_seqlens_q=starts[0], cu_seqlens_k=starts[1], window=window, **settings)
        return out.unflatten(0, q.shape[:2])
    if pattern is not None and pattern.starts is None:
        k, v = k[:, : pattern.n_keys], v[:, : pattern.n_keys]
        bias = None if bias is None else bias[..., : pattern.n_keys]
        padding = None if pattern.padding is None else pattern.padding[:, None, None]
        return attention(q, k, v, window=pattern.window, mask=padding, bias=bias, **settings)
    mask = None if mask is None else dense(mask, k.shape[1])
    if mask is not None and mask.is_floating_point():
        bias, mask = mask if bias is None else bias + mask, None
    return attention(q, k, v, mask=mask, bias=bias, **settings)


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Of a model that gives no mask: query i sees keys 0 to i."""
    seqlen_q, seqlen_k = query.shape[2], key.shape[2]

    def compute() -> Tensor:
        return torch.ones(1, 1, seqlen_q, seqlen_k, dtype=torch.bool, device=query.device).tril()

    if torch.compiler.is_compiling() or seqlen_q != seqlen_k:
        return compute()
    shape = (1, 1, seqlen_q, seqlen_k)
    return PatternMask(shape, query.device, compute, window=(None, 0), n_keys=seqlen_k, padding=None, starts=None)


def _refusal(model: str, others: dict[str, Any]) -> str | None:
    """Why this call is not ours: the model's own function would heed an argument that we do not know; else None."""
    if others.get("output_attentions"):
        return "output_attentions: attention weights are asked for, which are never stored"
    for name in _heeded_by(model):
        if others.get(name) is not None:
            return f"{name} is given"
    return None


_heeded: dict[str, tuple[str, ...]] = {}


def _heeded_by(model: str) -> tuple[str, ...]:
    """Arguments of the attention function of the module `model` that are not ours; it ignores what it does not name."""
    if model not in _heeded:
        eager = getattr(sys.modules[model], "eager_attention_forward", None)
        named = set() if eager is None else set(inspect.signature(eager).parameters)
        _heeded[model] = tuple(named - _KNOWN)
    return _heeded[model]


def _eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    model = type(module).__module__
    eager = getattr(sys.modules[model], "eager_attention_forward", None)
    if eager is None:
        raise ValueError(f"{NAME}: {model} has no attention of its own to fall back to")
    return eager


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask as a model's own function takes it: added to the scores."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.where(dense(mask, key.shape[2]), query.new_zeros(()), torch.finfo(query.dtype).min)
