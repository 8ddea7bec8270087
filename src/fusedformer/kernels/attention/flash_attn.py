"""Attention behind the signatures of flash-attn 2, all of them thin over `attention`.

Legend: attention.py. Arguments come in flash-attn's order and mean what they mean there. Beyond flash-attn: float32
and, on the CPU, float64; head dimensions up to 512, and of v another one; any strides; gradients of the log-sum-exp
and of `alibi_slopes`, and second derivatives.
Source: Dao et al., flash-attn 2, flash_attn_interface.py.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fusedformer.kernels import library
from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.attention.op import attention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash-attn 2's function of that name.

    Args:
        q: (B, Sq, H, D), float32, float16 or bfloat16.
        k: (B, Sk, Hkv, D).
        v: (B, Sk, Hkv, Dv).
        dropout_p: probability, less than 1, with which a weight is dropped; not the weights that flash-attn would drop.
        softmax_scale: factor of the scores; 1 / sqrt(D) if None.
        causal: hide what comes after the key that a query faces; the last query faces the last key.
        window_size: (left, right) keys beside that one which a query sees; -1 for all.
        softcap: cap(s) = softcap * tanh(s / softcap); 0.0 for none.
        alibi_slopes: (H,) or (B, H): slope |i + Sk - Sq - j| is taken from the score of query i and key j.
        deterministic: results are the same bits every time, whether asked for or not.
        return_attn_probs: return (out, log-sum-exp, None): the probabilities are never stored, so None stands for them.

    Returns:
        Tensor (B, Sq, H, Dv); with `return_attn_probs` (out, log-sum-exp (B, H, Sq) float32, None).

    Raises:
        ValueError: as `attention`.
    """
    out, lse = attention(
        q, k, v, dropout_p=dropout_p, scale=softmax_scale, causal=causal, window=window_size, softcap=softcap,
        alibi_slopes=alibi_slopes, return_lse=True,
    )  # fmt: skip
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """flash-attn 2's function of that name: sequences of different lengths, one after the other.

    Args:
        q: (total, H, D), float32, float16 or bfloat16.
        k: (total, Hkv, D).
        v: (total, Hkv, Dv).
        cu_seqlens_q: (B + 1,) int32: sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of q.
        cu_seqlens_k: (B + 1,) int32: the same for k and v.
        max_seqlen_q: not needed, and not looked at.
        max_seqlen_k: not needed, and not looked at.
        dropout_p: see `flash_attn_func`, as for the others.
        softmax_scale: 1 / sqrt(D) if None.
        causal: the last query of a sequence faces its last key.
        window_size: (left, right).
        softcap: 0.0 for none.
        alibi_slopes: (H,) or (B, H).
        deterministic: results always are.
        return_attn_probs: return (out, log-sum-exp, None).
        block_table: None; keys in pages are for `flash_attn_with_kvcache`.

    Returns:
        Tensor (total, H, Dv); with `return_attn_probs` (out, log-sum-exp (H, total) float32, None).

    Raises:
        ValueError: as `attention`; `block_table` is given.
    """
    call = Call("flash_attn_varlen_func")
    if block_table is not None:
        raise call.error("block_table is given, expected None: flash_attn_with_kvcache takes keys in pages")
    for name, starts in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        library.check_tensor(call.function, name, starts)
    out, lse = attention(
        q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, dropout_p=dropout_p, scale=softmax_scale,
        causal=causal, window=window_size, softcap=softcap, alibi_slopes=alibi_slopes, return_lse=True,
    )  # fmt: skip
    return (out, lse, None) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` of qkv (B, S, 3, H, D), read in place."""
    q, k, v = _unpack("flash_attn_qkvpacked_func", "qkv", qkv, ("B", "S", "3", "H", "D"))
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` of q (B, Sq, H, D) and kv (B, Sk, 2, Hkv, D), read in place."""
    k, v = _unpack("flash_attn_kvpacked_func", "kv", kv, ("B", "S", "2", "Hkv", "D"))
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` of qkv (total, 3, H, D), read in place; cu_seqlens (B + 1,) int32."""
    q, k, v = _unpack("flash_attn_varlen_qkvpacked_func", "qkv", qkv, ("total", "3", "H", "D"))
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` of q (total, H, D) and kv (total, 2, Hkv, D), read in place."""
    k, v = _unpack("flash_attn_varlen_kvpacked_func", "kv", kv, ("total", "2", "Hkv", "D"))
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def _unpack(function: str, name: str, packed: Tensor, dims: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The tensors along the third dimension from the end, which says how many there are."""
    library.check_tensor(function, name, packed)
    if packed.dim() != len(dims) or packed.shape[-3] != int(dims[-3]):
        raise Call(function).error(f"{name} has shape {tuple(packed.shape)}, expected ({', '.join(dims)})")
    return packed.unbind(-3)
