"""Rules for a Hugging Face model as a whole: its attention, by its config, and the loss of a language model.

Attention has no module of its own to be patched: models ask an interface for the function that their config names. The
loss has none either: a model calls a function that it looks up.
"""

import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.drop_in import calls, routing
from fusedformer.drop_in.known_source import digest
from fusedformer.drop_in.rules import Rule
from fusedformer.drop_in.transformers_hook import NAME, register_transformers
from fusedformer.kernels.cross_entropy import cross_entropy_fwd

_BEFORE = "_attention_before_fusedformer"
_CAUSAL_LM_LOSS = "0637640fcbd0"


def is_model(module: nn.Module) -> bool:
    """Whether it is one of transformers' models; imports nothing."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def find(model: Any, switches: set[str]) -> Rule | None:
    """The rule for one of transformers' models."""
    if "loss" in switches and _asks_for_loss(model):
        return WITH_LOSS
    return PLAIN if "attention" in switches else None


def _asks_for_loss(model: Any) -> bool:
    """Whether its forward looks its loss up, and finds the one of the next token."""
    forward = inspect.unwrap(type(model).forward)
    asks = "loss_function" in getattr(getattr(forward, "__code__", None), "co_names", ())
    return asks and digest(model.loss_function) == _CAUSAL_LM_LOSS


def take_attention(model: nn.Module) -> Iterator[tuple[str, str | None]]:
    """Let the Hugging Face models in `model` ask for our attention.

    Yields:
        The path of each model whose config was not ours before, and why it could not be set, or None.
    """
    models = [(path, module) for path, module in model.named_modules() if is_model(module)]
    before = [dict(_implementations(module.config)) for _, module in models]
    for (path, module), implementations in zip(models, before, strict=True):
        if implementations[""] == NAME:
            continue
        reason = _set(module)
        if reason is None:
            setattr(module, _BEFORE, implementations)
        if module.config is not getattr(_parent(models, path), "config", None):  # else the parent has answered for it
            yield path, reason


def give_attention_back(module: nn.Module) -> None:
    """Let a Hugging Face model ask for what it asked for before `take_attention`."""
    before = vars(module).pop(_BEFORE, {})
    for path, config in _configs(module.config) if before else ():
        if path in before:
            config._attn_implementation_internal = before[path]


def register() -> None:
    """Make our attention known to transformers as NAME."""
    register_transformers()


def _set(module: Any) -> str | None:
    """Why the model could not be set; None if it was, or had been through a model around it."""
    if not hasattr(module, "set_attn_implementation"):
        return "its transformers cannot set the attention of a model that is there: 4.53 or newer can"
    try:
        register()
        module.set_attn_implementation(NAME)
    except (ImportError, ValueError) as error:
        return str(error).splitlines()[0]
    if module.config._attn_implementation != NAME:
        return "its attention does not go through transformers' interface"
    return None


def _parent(models: list[tuple[str, Any]], path: str) -> Any:
    around = [module for other, module in models if other != path and (not other or path.startswith(f"{other}."))]
    return around[-1] if around else None


def _implementations(config: Any) -> Iterator[tuple[str, str | None]]:
    for path, each in _configs(config):
        yield path, each._attn_implementation


def _configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, config
    for name in getattr(config, "sub_configs", {}):
        if (below := getattr(config, name, None)) is not None:
            yield from _configs(below, f"{path}.{name}" if path else name)


def _loss_function(self: Any) -> Any:
    """What the model looks up to compute its loss: the same function, through our cross entropy where it is known."""
    theirs = self.fused_original.loss_function.fget(self)
    return functools.partial(_causal_lm_loss, self, theirs) if digest(theirs) == _CAUSAL_LM_LOSS else theirs


def _set_loss_function(self: Any, value: Any) -> None:
    self.fused_original.loss_function.fset(self, value)


def _causal_lm_loss(
    model: nn.Module,
    theirs: Any,
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """transformers' loss of the next token, whose copies of the logits in float32 are not made."""
    reason = None
    if routing.has_kernel("cross_entropy", logits):
        reason = routing.refusal(model, logits)
        if reason is None:
            calls.served(model, "cross_entropy", logits)
            return _next_token_loss(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels)
        calls.fell_back(model, "cross_entropy", reason)
    else:
        calls.served(model, "cross_entropy", logits)
    return theirs(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs)


def _next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items: Tensor | int | None,
    ignore_index: int,
    shift_labels: Tensor | None,
) -> Tensor:
    """In float32, whatever the logits are: the mean over labels that count, or the sum by `num_items`."""
    if shift_labels is None:
        if labels is None:
            raise ValueError("loss: neither labels nor shift_labels are given")
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    target = shift_labels.reshape(-1).to(logits.device, torch.int64)
    loss, _, _, _ = cross_entropy_fwd(logits.reshape(-1, vocab_size), target, None, ignore_index, 0.0)
    if num_items is None:
        num_items = (target != ignore_index).sum()
    return loss.sum() / (num_items.to(loss.device) if isinstance(num_items, Tensor) else num_items)


_EFFECT = "loss without the logits in float32"
WITH_LOSS = Rule(
    "hugging_face_model_with_loss", ("loss",), "cross_entropy", _EFFECT, prepare=register,
    members={"loss_function": property(_loss_function, _set_loss_function)},
)  # fmt: skip
PLAIN = Rule("hugging_face_model", ("attention",), "attention", "attention by its config", prepare=register)
RULES = WITH_LOSS, PLAIN
