"""Single changes to a model that let it have a longer context, each of which computes the same function.

Sources: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (checkpointing); Liu, Zaharia, Abbeel, "Ring
Attention with Blockwise Transformers for Near-Infinite Context", 2023 (chunked MLP and loss, context parallel).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusedformer.benchmarks.profile.contenders import in_recomputation
from fusedformer.benchmarks.profile.tracing import BLOCKS

CHECKPOINTING, CHUNKED_MLP, CHUNKED_LOSS = "activation checkpointing", "chunked MLP", "chunked loss"
CHANGES = (CHECKPOINTING, CHUNKED_MLP, CHUNKED_LOSS)
CHUNKS = 8


def apply_changes(model: nn.Module, changes: frozenset[str]) -> None:
    """Make these changes to the blocks of a model, in place; a chunked loss is no matter of the model.

    Raises:
        ValueError: the model has no blocks to change.
    """
    for change, named in ((CHECKPOINTING, _blocks), (CHUNKED_MLP, _mlps)):
        if change not in changes:
            continue
        found = list(named(model))
        if not found:
            raise ValueError(f"{change}: {type(model).__name__} has no ModuleList {BLOCKS!r}")
        for module in found:
            wrap = _checkpointed if change == CHECKPOINTING else _in_chunks
            module.forward = wrap(module.forward)


def chunked(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """Results of `function` for chunks along dimension 1; with gradients, the backward computes them anew."""
    parts = zip(*(x.chunk(CHUNKS, dim=1) for x in tensors))
    if not torch.is_grad_enabled():
        return [function(*part) for part in parts]
    return [_recomputed(function, *part) for part in parts]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == BLOCKS:
            yield from module


def _mlps(model: nn.Module) -> Iterator[nn.Module]:
    for block in _blocks(model):
        yield from (module for name, module in block.named_children() if name == "feed_forward")


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return partial(_recomputed, forward)


def _recomputed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function` gives, and computes again in the backward."""
    return checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=in_recomputation, **kwargs
    )


def _in_chunks(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x_BSE: torch.cat(chunked(forward, x_BSE), dim=1)
