"""One step of a model: training, prefill of a context, or decoding one more token behind it.

Training is forward, loss, backward and a fused AdamW step, its moments in the dtype of the weights. Prefill reads the
context without gradients, keeps keys and values, and computes the logits that come next. Decoding adds one token to a
cache of keys and values that is full up to the context.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fusedformer.benchmarks.profile.changes import CHUNKED_LOSS, apply_changes, chunked
from fusedformer.benchmarks.profile.components import LOSS_SCOPE, OPTIMIZER_SCOPE
from fusedformer.benchmarks.profile.subjects import DTYPE, Built
from fusedformer.transformer.blocks import Stack
from fusedformer.transformer.cache import Cache, KeyValueCache
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.outputs import mean_cross_entropy
from fusedformer.transformer.vision_transformer import VisionTransformer

TRAIN, PREFILL, DECODE = "train", "prefill", "decode"
MODES = (TRAIN, PREFILL, DECODE)
LEARNING_RATE = 1e-4


class Observer(Protocol):
    """What sees a step from inside: a trace."""

    def hold(self, kind: str, held: Sequence[Tensor]) -> None:
        """Name these tensors."""

    def scope(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A name around ops."""


class NobodyObserves:
    """An observer that does nothing."""

    def hold(self, kind: str, held: Sequence[Tensor]) -> None:
        """Do nothing."""

    def scope(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Do nothing."""
        return contextlib.nullcontext()


@dataclass
class Step:
    """One step that can be run again and again, and the tensors that are there before it, by kind."""

    model: nn.Module
    run: Callable[[Observer], None]
    held: dict[str, list[Tensor]] = field(default_factory=dict)


class NoSuchStepError(ValueError):
    """The model has no step of this mode."""


def make_step(
    built: Built, mode: str, context: int, device: torch.device, changes: frozenset[str] = frozenset()
) -> Step:
    """A step of a model that has been built for this context on this device.

    Args:
        built: the model.
        mode: one of MODES.
        context: length of the sequence.
        device: where the model is.
        changes: of CHANGES, those to make to the model first.

    Raises:
        NoSuchStepError: the model has no such step, or no such change.
    """
    model = built.model
    apply_changes(model, changes)
    with device:
        if mode == TRAIN:
            inputs = _inputs(built, context + 1 if isinstance(model, Decoder) else context)
            return _training_step(model, inputs, _loss(model, CHUNKED_LOSS in changes))
        if mode == PREFILL:
            return _prefill_step(model, _inputs(built, context))
        return _decode_step(model, context)


def _inputs(built: Built, length: int) -> tuple[Tensor, ...]:
    """Random tokens, images or frames, on PyTorch's current device."""
    model = built.model
    if isinstance(model, Decoder):
        return (torch.randint(model.config.vocab_size, (1, length)),)
    if isinstance(model, VisionTransformer):
        config = model.config
        image = torch.randn(1, config.n_channels, config.image_size, config.image_size, dtype=DTYPE)
        return image, torch.zeros(1, dtype=torch.long)
    if isinstance(model, EncoderDecoder):
        config = model.config
        target = torch.randint(config.vocab_size, (1, config.max_seq_len))
        return torch.randn(1, config.n_mels, 2 * length, dtype=DTYPE), target
    return built.inputs


Loss = Callable[..., Tensor]


def _loss(model: nn.Module, is_chunked: bool) -> Loss:
    if isinstance(model, Decoder):
        return chunked_loss(model) if is_chunked else model.loss
    if is_chunked:
        raise NoSuchStepError(f"{type(model).__name__} has no loss over the sequence to chunk")
    if isinstance(model, EncoderDecoder):
        return model.loss
    if isinstance(model, VisionTransformer):
        return lambda images, classes: F.cross_entropy(model(images).float(), classes)

    def mean(*inputs: Tensor) -> Tensor:
        found = _first_tensor(model(*inputs))
        return found if found.dim() == 0 else found.float().mean()

    return mean


def chunked_loss(model: Decoder) -> Loss:
    """The decoder's loss, its logits computed a chunk of the sequence at a time, and again in the backward."""

    def of_chunk(hidden_BSE: Tensor, targets_BS: Tensor) -> Tensor:
        return mean_cross_entropy(model.unembed(hidden_BSE), targets_BS) * targets_BS.numel()

    def loss(tokens: Tensor) -> Tensor:
        hidden_BSE, targets_BS = model.hidden(tokens[:, :-1]), tokens[:, 1:]
        return torch.stack(chunked(of_chunk, hidden_BSE, targets_BS)).sum() / targets_BS.numel()

    return loss


def _training_step(model: nn.Module, inputs: tuple[Tensor, ...], loss: Loss) -> Step:
    parameters: list[Tensor] = list(model.train().parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    counts = [torch.zeros((), dtype=torch.float32) for _ in parameters]

    def run(observer: Observer) -> None:
        with observer.scope(LOSS_SCOPE):
            value = loss(*inputs)
        value.backward()
        trained = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in trained if p.grad is not None]
        observer.hold("gradients", gradients)
        with observer.scope(OPTIMIZER_SCOPE), torch.no_grad():
            places = [i for i, p in enumerate(parameters) if p.grad is not None]
            adamw(
                trained, gradients, [first[i] for i in places], [second[i] for i in places], [],
                [counts[i] for i in places], fused=True, amsgrad=False, beta1=0.9, beta2=0.95, lr=LEARNING_RATE,
                weight_decay=0.1, eps=1e-8, maximize=False,
            )  # fmt: skip
        for p in parameters:
            p.grad = None

    held = {"parameters": parameters, "optimizer state": [*first, *second, *counts], "inputs": list(inputs)}
    return Step(model, run, held)


def _prefill_step(model: nn.Module, inputs: tuple[Tensor, ...]) -> Step:
    model.eval()

    @torch.no_grad()
    def run(observer: Observer) -> None:
        if isinstance(model, Decoder):
            caches = model.stack.new_caches(inputs[0].shape[1])
            model.unembed(model.hidden(inputs[0], None, caches)[:, -1])
            observer.hold("KV cache", _cached(caches))
        elif isinstance(model, EncoderDecoder):
            caches = model.decoder.new_caches(inputs[1].shape[1])
            model.decode(inputs[1][:, :1], model.encode(inputs[0]), caches)
        else:
            model(*(inputs[:1] if isinstance(model, VisionTransformer) else inputs))

    return Step(model, run, {"parameters": list(model.parameters()), "inputs": list(inputs)})


def _decode_step(model: nn.Module, context: int) -> Step:
    """The caches hold all but the last position; each run forgets what it added."""
    model.eval()
    token = torch.zeros(1, 1, dtype=torch.long)
    if isinstance(model, Decoder):
        caches, memories = _filled(model.stack, model.config, context), []
    elif isinstance(model, EncoderDecoder):
        T = model.config.max_seq_len
        caches = _filled(model.decoder, model.config, T)
        with torch.no_grad():
            memories = model.decoder.remember(torch.randn(1, context, model.config.d_model, dtype=DTYPE), None)
    else:
        raise NoSuchStepError(f"{type(model).__name__} does not decode")

    @torch.no_grad()
    def run(observer: Observer) -> None:
        for cache in caches:
            cache.length = cache.max_seq_len - 1
        if isinstance(model, Decoder):
            model.unembed(model.hidden(token, None, caches)[:, -1])
        else:
            model.decode(token, memories, caches)

    kept = [*_cached(caches), *(x for memory in memories for x in (memory.keys, memory.values))]
    return Step(model, run, {"parameters": list(model.parameters()), "KV cache": kept, "inputs": [token]})


def _filled(stack: Stack, config: TransformerConfig, length: int) -> list[KeyValueCache]:
    """A cache for each block, with random keys and values for all positions."""
    caches = [KeyValueCache(length) for _ in stack.blocks]
    for cache in caches:
        shape = (1, length, config.n_kv_heads or config.n_heads, config.head_dim)
        cache.keys, cache.values = (torch.randn(shape, dtype=DTYPE) for _ in range(2))
        cache.length = cache.capacity = length
    return caches


def _cached(caches: Sequence[Cache]) -> list[Tensor]:
    return [x for cache in caches for x in (cache.keys, cache.values)]


def _first_tensor(output: Any) -> Tensor:
    """The tensor that a model gives, or the first of several."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output
