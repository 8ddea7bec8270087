"""What one op of a trace has to compute and to move: the formulas, by the op's arguments.

Matrix products and what has a kernel of ours are counted by formula. Everything else is taken for elementwise: one FLOP
for each element of its results, and every operand moved once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from fusedformer.benchmarks.profile import formulas
from fusedformer.benchmarks.profile.formulas import Work
from fusedformer.kernels.attention.extras import Extras

# Ops that create without writing, or only look.
_FREE = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "record_stream"})
_LOOKUPS = frozenset({"embedding", "index", "gather", "index_select"})
_BIASED = frozenset({"addmm", "baddbmm"})
_FUSED_STEP = frozenset({"_fused_adamw_", "_fused_adam_"})


def tensors(values: Any) -> list[Tensor]:
    """All tensors among arguments or results."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def work_of(op: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any, mutated: Sequence[Tensor]) -> Work:
    """FLOPs and bytes of one call.

    Args:
        op: its name without namespace and overload.
        args: its positional arguments, in the order of its schema.
        kwargs: the others.
        out: its results that are no views of an argument.
        mutated: arguments that it writes to.
    """
    if op in _FREE:
        return Work(0, 0)
    if op in _FUSED_STEP:
        return formulas.adamw(sum(p.numel() for p in args[0]), itemsize=args[0][0].element_size())
    written = tensors(out) + list(mutated)
    if op in _ATTENTION:
        return _ATTENTION[op](args)
    read = _distinct(tensors((args, kwargs)))
    if op in _LOOKUPS:  # of the table only what is looked up
        read = [x for x in read if x is not read[0]]
        moved = sum(map(_size, read)) + 2 * sum(map(_size, written))
    else:
        moved = sum(map(_size, read)) + sum(map(_size, written))
    if op in _PRODUCTS:
        return Work(product_flops(op, args, written) + (written[0].numel() if op in _BIASED else 0), moved)
    return Work(_elementwise_flops(op, args, written), moved)


def product_flops(op: str, args: Sequence[Any], written: Sequence[Tensor]) -> float:
    """FLOPs of a matrix product, without a bias, of a convolution or of an attention; 0 of any other op."""
    if op in _ATTENTION:
        return _ATTENTION[op](args).flops
    return _PRODUCTS[op](args, written) if op in _PRODUCTS else 0.0


def unit_of(op: str, args: Sequence[Any]) -> tuple[bool, int]:
    """Whether matrix units can compute an op, for its numbers have 16 bits; and the head dimension of an attention."""
    if op not in _PRODUCTS and op not in _ATTENTION:
        return False, 0
    operands = tensors(args)
    return operands[-1 if op in _PRODUCTS else 0].element_size() == 2, operands[0].shape[-1] if op in _ATTENTION else 0


def _cross_entropy_workspace_on_cpu(op: str, args: Sequence[Any]) -> int:
    is_backward = op == "cross_entropy_bwd"
    if op != "cross_entropy_fwd" and not is_backward:
        return 0
    logits = args[2 if is_backward else 0]
    copies = 4 if logits.element_size() == 4 else 8
    return logits.numel() * (copies - logits.element_size() if is_backward else copies)


def workspace_of(op: str, args: Sequence[Any], device_type: str) -> int:
    """Bytes that an op allocates for itself while it runs, which no trace sees.

    PyTorch's safe softmax keeps a boolean for each element, whether it is -inf. On a GPU our
    attention keeps two float32 for each query (query_rows in kernels/attention/launch.py); PyTorch's flash attention
    one, a float32 dq, and dk and dv for each query head where these share keys (mha_bwd in flash-attn 2). On a CPU
    our cross entropy, in plain PyTorch, keeps float32: forward the exponentials, and the logits if they are in half
    precision; backward, where these are the gradient, no more in float32, and both for a while in half precision.
    """
    if op == "_safe_softmax":
        return args[0].numel()
    if device_type == "cpu":
        return _cross_entropy_workspace_on_cpu(op, args)
    if op == "attention_bwd":
        return 2 * 4 * args[3].numel()
    if op == "_scaled_dot_product_flash_attention_backward":
        _, q, k, v = args[:4]
        shared = 0 if k.shape[1] == q.shape[1] else (k.numel() + v.numel()) * q.shape[1] // k.shape[1]
        return 4 * q.numel() // q.shape[-1] + 4 * q.numel() + shared * q.element_size()
    return 0


def _elementwise_flops(op: str, args: Sequence[Any], written: Iterable[Tensor]) -> float:
    """Norms and losses by their formulas; one operation for each element otherwise."""
    direction = "backward" if "backward" in op or op.endswith("bwd") else "forward"
    for kind in ("layer_norm", "rms_norm"):
        if kind in op:
            return formulas.NORM_FLOPS[kind, direction] * max(x.numel() for x in tensors(args))
    if "cross_entropy" in op or "log_softmax" in op:
        return formulas.CROSS_ENTROPY_FLOPS[direction] * max(x.numel() for x in tensors(args))
    return sum(x.numel() for x in written)


def _size(x: Tensor) -> int:
    """Bytes that are there: what is expanded lies in memory once."""
    present = [size for size, stride in zip(x.shape, x.stride()) if stride]
    return (math.prod(present) if x.numel() else 0) * x.element_size()


def _distinct(found: Iterable[Tensor]) -> list[Tensor]:
    return list({id(x): x for x in found}.values())


def _matmul(args: Sequence[Any], written: Sequence[Tensor]) -> float:
    """mm and bmm: (..., M, K) x (..., K, N)."""
    return 2.0 * written[0].numel() * args[0].shape[-1]


def _biased_matmul(args: Sequence[Any], written: Sequence[Tensor]) -> float:
    """addmm and baddbmm: the first argument is what the product is added to."""
    return _matmul(args[1:], written)


def _convolution(args: Sequence[Any], written: Sequence[Tensor]) -> float:
    weight, transposed = args[1], args[6]
    of = args[0] if transposed else written[0]
    return formulas.convolution(of.numel(), weight.numel(), weight.shape[0])


def _convolution_backward(args: Sequence[Any], written: Sequence[Tensor]) -> float:
    dout, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    of = x if transposed else dout
    return sum(wanted[:2]) * formulas.convolution(of.numel(), weight.numel(), weight.shape[0])


_PRODUCTS: dict[str, Callable[[Sequence[Any], Sequence[Tensor]], float]] = {
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _biased_matmul,
    "baddbmm": _biased_matmul,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}


def _ours(args: Sequence[Any], backward: bool) -> Work:
    q, k, v, *settings = args[5:] if backward else args
    extras = Extras(*settings)
    left, right = extras.window(q, k)
    if extras.starts_q is None:
        pairs = q.shape[0] * formulas.visible_pairs(
            q.shape[1], k.shape[1], left=left, right=right, bottom_right=extras.bottom_right
        )
    else:  # where sequences begin is data: at most everything in one sequence is seen
        pairs = formulas.visible_pairs(q.shape[1], k.shape[1], left=left, right=right)
    return _attention(pairs, q, k, v, heads_dim=2, backward=backward)


def _decode(args: Sequence[Any]) -> Work:
    """Queries over a cache that is full to its length: `length`, or its capacity where lengths are data."""
    q, k, v, _, _, _, left, right, _, lengths, length, *_ = args
    Sk = length if lengths is None else k.shape[1]
    pairs = q.shape[0] * formulas.visible_pairs(q.shape[1], Sk, left=left, right=right)
    return _attention(pairs, q, k[:, :Sk], v[:, :Sk], heads_dim=2, backward=False)


def _flash(args: Sequence[Any], causal: int, first: int, backward: bool) -> Work:
    """PyTorch's: heads first, causal from the top left."""
    q, k, v = args[first : first + 3]
    right = 0 if len(args) > causal and args[causal] else None
    pairs = q.shape[0] * formulas.visible_pairs(q.shape[2], k.shape[2], right=right, bottom_right=False)
    return _attention(pairs, q, k, v, heads_dim=1, backward=backward)


def _attention(pairs: int, q: Tensor, k: Tensor, v: Tensor, *, heads_dim: int, backward: bool) -> Work:
    formula = formulas.attention_backward if backward else formulas.attention_forward
    rows = 3 - heads_dim
    return formula(
        pairs, q.shape[0] * q.shape[rows], k.shape[0] * k.shape[rows], H=q.shape[heads_dim], K=k.shape[heads_dim],
        D=q.shape[3], Dv=v.shape[3], itemsize=q.element_size(),
    )  # fmt: skip


_ATTENTION: dict[str, Callable[[Sequence[Any]], Work]] = {
    "attention_fwd": lambda args: _ours(args, backward=False),
    "attention_bwd": lambda args: _ours(args, backward=True),
    "attention_decode": _decode,
    "_scaled_dot_product_flash_attention": lambda args: _flash(args, 4, 0, backward=False),
    "_scaled_dot_product_flash_attention_for_cpu": lambda args: _flash(args, 4, 0, backward=False),
    "_scaled_dot_product_flash_attention_backward": lambda args: _flash(args, 11, 1, backward=True),
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda args: _flash(args, 7, 1, backward=True),
    "_scaled_dot_product_efficient_attention": lambda args: _flash(args, 6, 0, backward=False),
    "_scaled_dot_product_efficient_attention_backward": lambda args: _flash(args, 11, 1, backward=True),
    "_scaled_dot_product_cudnn_attention": lambda args: _flash(args, 6, 0, backward=False),
    "_scaled_dot_product_cudnn_attention_backward": lambda args: _flash(args, 14, 1, backward=True),
}
