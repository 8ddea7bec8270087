"""How the packages of other contenders declare what we call: to the letter, where the packages are not installed.

Of liger-kernel 0.8.5, quack-kernels 0.6.5, flash-attn 2.8.3, fa3-fwd 0.0.3 and flash-attn-4 4.0.0b36.
"""

import inspect
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


LIGER: dict[str, Function] = {
    "liger_layer_norm": lambda X, W, B, eps: None,
    "liger_rms_norm": lambda X, W, eps, offset=0.0, casting_mode="llama", in_place=True: None,
    "liger_fused_add_rms_norm": lambda X, R, W, eps, offset=0.0, casting_mode="llama", in_place=True: None,
    "liger_softmax": lambda x: None,
    "liger_cross_entropy": lambda input, target, weight=None, size_average=None, ignore_index=-100, reduce=None,
    reduction="mean", label_smoothing=0.0, lse_square_scale=0.0, softcap=None, return_z_loss=False,
    return_token_accuracy=False, return_predicted_tokens=False: None,
    "liger_swiglu": lambda a, b: None,
    "liger_geglu": lambda a, b: None,
}  # fmt: skip
QUACK: dict[str, Function] = {
    "rmsnorm": lambda x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6,
    prenorm=False, weight_offset=0.0: None,
    "softmax": lambda x: None,
    "cross_entropy": lambda x, target, lse_partial=None, weight=None, ignore_index=-100, reduction="mean",
    inplace_backward=False: None,
}  # fmt: skip
FLASH_ATTN: dict[int, Function] = {
    2: lambda q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False: None,
    3: lambda q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0, return_attn_probs=False: None,
    4: lambda q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
    learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
    score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None,
    block_sparse_tensors_bwd=None, return_lse=False, gather_bwd_recompute_p=False, gather_bwd_token_chunk=None: None,
}  # fmt: skip


def declared_as(declaration: Function, function: Function) -> Function:
    """`function`, called with what the declaration takes alone: a TypeError else."""
    signature = inspect.signature(declaration)

    def call(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return function(*args, **kwargs)

    return call
