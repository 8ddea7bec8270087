"""Patterns of attention of a model at work: which position looked at which, exactly as the kernel weighed them.

The pattern is the attention itself, of values that are the identity matrix: out[i] = sum_j p[i, j] e_j = p[i]. So
masks, biases, ALiBi and rotary positions are in it by construction. It costs memory in proportion to S x T.
Dimensions: B batch, H heads chosen, S positions that attend, T positions attended to, K key heads, D head width.
"""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fusedformer.kernels.attention.inputs import MAX_HEAD_DIM
from fusedformer.kernels.attention.op import attention
from fusedformer.transformer.attention import MultiHeadAttention
from fusedformer.transformer.blocks import Stack

Patterns = dict[str, list[Tensor]]


@contextlib.contextmanager
def record_attention(
    model: nn.Module, *, layers: Collection[int] | None = None, heads: Collection[int] | None = None
) -> Iterator[Patterns]:
    """Record the patterns of attention of everything that `model` computes inside the `with` block.

    Args:
        model: a model of this package, or a stack of its blocks.
        layers: numbers of the blocks to record, from 0; None: all.
        heads: numbers of the heads to record, from 0; None: all.

    Yields:
        A dictionary that fills as the model runs. Keys are the names of attention modules, in order, such as
        "stack.blocks.0.attention" or "decoder.blocks.3.cross_attention". Values have one tensor for each call of the
        module, (B, H, S, T), float32 (float64 for float64), without gradient: rows sum to 1, or are 0 where a query
        sees no key. Decoding with a cache calls a module for each token.

    Raises:
        ValueError: there are no such layers or heads, these are being recorded already, or, in the block, sequences are
            packed, which have no one grid.
    """
    chosen = find_attentions(model, layers)
    for name, module in chosen.items():
        check_numbers("heads", heads, module.n_heads)
        if module.watcher is not None:
            raise ValueError(f"{name} is being recorded already: end that recording first")
    patterns: Patterns = {name: [] for name in chosen}
    try:
        for name, module in chosen.items():
            module.watcher = Recorder(patterns[name], None if heads is None else sorted(heads))
        yield patterns
    finally:
        for module in chosen.values():
            del module.watcher


def find_attentions(model: nn.Module, layers: Collection[int] | None) -> dict[str, MultiHeadAttention]:
    """The attention modules in these blocks of every stack, by name."""
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, Stack)}
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no stack of blocks whose attention could be recorded")
    found = {}
    for prefix, stack in stacks.items():
        check_numbers("layers", layers, len(stack.blocks))
        for index in range(len(stack.blocks)) if layers is None else sorted(layers):
            for name, module in stack.blocks[index].named_modules(prefix=f"{prefix}.blocks.{index}".lstrip(".")):
                if isinstance(module, MultiHeadAttention):
                    found[name] = module
    return found


def check_numbers(what: str, numbers: Collection[int] | None, count: int) -> None:
    """Raise ValueError unless these are None or numbers from 0 to count - 1."""
    wrong = [] if numbers is None else [number for number in numbers if number not in range(count)]
    if wrong:
        raise ValueError(f"{what} {', '.join(map(str, wrong))}: the model has 0 to {count - 1}")


class Recorder:
    """Takes what an attention module computes with, and keeps the pattern that comes of it."""

    def __init__(self, patterns: list[Tensor], heads: list[int] | None) -> None:
        self.patterns, self.heads = patterns, heads

    @torch.no_grad()
    def __call__(self, q_BSHD: Tensor, k_BTKD: Tensor, settings: dict[str, Any]) -> None:
        if "cu_seqlens_q" in settings:
            raise ValueError("packed sequences have no one grid of attention to record: pad them, with a mask")
        pattern_BHST = attention_pattern(q_BSHD, k_BTKD, **settings)
        self.patterns.append(pattern_BHST if self.heads is None else pattern_BHST[:, self.heads])


def attention_pattern(q_BSHD: Tensor, k_BTKD: Tensor, **settings: Any) -> Tensor:
    """The weights (B, H, S, T) of `fusedformer.attention` with these arguments, each row a distribution over keys."""
    if q_BSHD.dtype in (torch.float16, torch.bfloat16):
        q_BSHD, k_BTKD = q_BSHD.float(), k_BTKD.float()  # weights that are not rounded
    B, T, K, _ = k_BTKD.shape
    identity_TT = torch.eye(T, dtype=k_BTKD.dtype, device=k_BTKD.device)
    columns = [
        attention(q_BSHD, k_BTKD, some_TM[None, :, None].expand(B, T, K, -1), **settings)
        for some_TM in identity_TT.split(MAX_HEAD_DIM, dim=1)
    ]
    return torch.cat(columns, dim=-1).transpose(1, 2)
