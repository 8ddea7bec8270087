"""Our models against the same models of torch.nn: same sizes, same weights, same answers.

Forward is evaluation without gradients; a training step is forward, loss, backward and AdamW. A decoder has prefill,
which reads a prompt into a cache and gives the logits that come next, and decode, one token more behind a cache of
S - 1. Dropout is 0, so that all compute the same function. B batch, S sequence.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.benchmarks.harness.accuracy import budget_ratios
from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict, Work, judge
from fusedformer.benchmarks.harness.implementation import OURS, MissingError, package_version
from fusedformer.benchmarks.harness.instruments import Prepared
from fusedformer.benchmarks.harness.model_flops import FORWARD_ALONE, WITH_BACKWARD, model_work
from fusedformer.benchmarks.harness.op import FORWARD, WORLDS
from fusedformer.benchmarks.harness.timing import Run
from fusedformer.benchmarks.harness.torch_models import (
    TorchEncoderDecoder,
    TorchTextModel,
    TorchVisionTransformer,
    as_theirs,
    load_ours,
)
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.vision_transformer import VisionTransformer

THEIRS, COMPILED = "torch.nn", "torch.compile"
TRAINING_STEP, PREFILL, DECODE = "training step", "prefill", "decode"
# Four narrow layers take a CPU tens of milliseconds; twelve of width 768 are BERT-base, GPT-2 and ViT-B.
SMALL = {"d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 1024}
BASE = {"d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 3072}
Loss = Callable[[Tensor, Tensor], Tensor]
Results = dict[str, Tensor]


@dataclass(frozen=True)
class ModelCase:
    """A model's sizes, the number of sequences or images in a batch, and the dtype of the weights."""

    config: TransformerConfig
    batch_size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.sizes.items())

    @property
    def sizes(self) -> dict[str, int]:
        """By name."""
        config = self.config
        patches = {"image": config.image_size, "patch": config.patch_size}
        length = {"S": config.max_seq_len} if config.max_seq_len else patches
        return {"B": self.batch_size, **length, "d_model": config.d_model, "n_layers": config.n_layers}


@dataclass(frozen=True)
class Batch:
    """What a model reads, and what its output is held against in training."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "Batch":
        """In another dtype, but for class and token numbers, and on another device."""
        *inputs, targets = (
            t.to(device or t.device, dtype if t.is_floating_point() else t.dtype) for t in (*self.inputs, self.targets)
        )
        return Batch(tuple(inputs), targets)


class Way(NamedTuple):
    """One way to use a model: what it computes, to be judged, and a call to be timed."""

    results: Callable[[nn.Module, Batch], Results]
    run: Callable[[nn.Module, Batch], Run]
    contenders: Sequence[str]


@dataclass(frozen=True)
class Architecture:
    """One architecture: ours, torch.nn's, and what it trains on."""

    name: str
    ours: Callable[[TransformerConfig], nn.Module]
    theirs: Callable[[TransformerConfig], nn.Module]
    make_batch: Callable[[ModelCase, torch.Generator], Batch]
    loss: Loss  # of output and targets
    cases: Mapping[str, ModelCase]  # by device type
    is_decoder: bool = False

    @property
    def ways(self) -> dict[str, Way]:
        """By direction."""
        every, cached = (OURS, THEIRS, COMPILED), (OURS, THEIRS)
        training = Way(partial(gradients, loss=self.loss), partial(training_run, loss=self.loss), every)
        if self.is_decoder:
            found = {name: Way(partial(_output_of, run), run, cached) for name, run in _DECODER_RUNS.items()}
        else:
            found = {FORWARD: Way(partial(_output_of, forward_run), forward_run, every)}
        return found | {TRAINING_STEP: training}


def comparisons(architecture: Architecture, device: torch.device, seed: int) -> list[Comparison]:
    """Every way to use one architecture."""
    family = _Family(architecture, architecture.cases[device.type], device, seed)
    return [
        Comparison(
            subject=architecture.name,
            case=str(family.case),
            dtype=str(family.case.dtype).removeprefix("torch."),
            world=WORLDS[device.type],
            direction=direction,
            contenders={
                name: Contender(
                    partial(family.verdict, name, way),
                    partial(family.prepare, name, way),
                    package_version("fusedformer" if name == OURS else "torch"),
                )
                for name in way.contenders
            },
            sizes=family.case.sizes,
            count=partial(family.work, direction),
        )
        for direction, way in architecture.ways.items()
    ]


def forward_run(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """One call: the output of a batch, without gradients."""
    model.eval()
    return torch.inference_mode()(lambda: model(*batch.inputs))


def prefill_run(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """One call: a prompt into an empty cache, and the logits of what comes next."""
    model.eval()
    (tokens_BS,) = batch.inputs
    return torch.inference_mode()(lambda: _advance(model, tokens_BS, _new_caches(model, tokens_BS.shape[1])))


def decode_run(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """One call: the last token of a prompt, the others being cached; the cache forgets it again."""
    model.eval()
    (tokens_BS,) = batch.inputs
    S = tokens_BS.shape[1]
    caches = _new_caches(model, S)

    @torch.inference_mode()
    def decode() -> Tensor:
        if not caches[0].length:
            _advance(model, tokens_BS[:, :-1], caches)
        for cache in caches:
            cache.length = S - 1
        return _advance(model, tokens_BS[:, -1:], caches)

    return decode


_DECODER_RUNS = {PREFILL: prefill_run, DECODE: decode_run}


def _new_caches(model: Any, length: int) -> Any:
    """The same kind of cache for ours and torch.nn's."""
    return (model.stack if isinstance(model, Decoder) else model).new_caches(length)


def _advance(model: Any, tokens_BS: Tensor, caches: Any) -> Tensor:
    if isinstance(model, Decoder):
        return model.unembed(model.hidden(tokens_BS, None, caches)[:, -1])
    return model.advance(tokens_BS, caches)


def training_run(model: nn.Module, batch: Batch, loss: Loss) -> Run:
    """One call: forward, loss, backward and an AdamW step, always on the same batch."""
    is_on_gpu = batch.targets.is_cuda  # where the count of steps has to be, for a graph to hold the step
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=is_on_gpu, capturable=is_on_gpu)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(*batch.inputs), batch.targets).backward()
        optimizer.step()

    return step


def gradients(model: nn.Module, batch: Batch, loss: Loss) -> Results:
    """The output, and by torch.nn's names the gradient of each parameter."""
    output = model.train()(*batch.inputs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss(output, batch.targets), parameters)
    named = as_theirs(zip(names, values, strict=True))
    return {"out": output.detach(), **{f"d{name}": value for name, value in named.items()}}


def _output_of(run: Callable[[nn.Module, Batch], Callable[[], Tensor]], model: nn.Module, batch: Batch) -> Results:
    return {"out": run(model, batch)()}


class _Family:
    """Our model and torch.nn's with the same weights, built when they are first needed."""

    def __init__(self, architecture: Architecture, case: ModelCase, device: torch.device, seed: int) -> None:
        self.architecture, self.case, self.device, self.seed = architecture, case, device, seed

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """Ours and torch.nn's."""
        torch.manual_seed(self.seed)
        ours, theirs = self.architecture.ours(self.case.config), self.architecture.theirs(self.case.config)
        load_ours(theirs, ours)
        return {name: model.to(self.device, self.case.dtype) for name, model in ((OURS, ours), (THEIRS, theirs))}

    @cached_property
    def batch(self) -> Batch:
        """Random, the same for all."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return self.architecture.make_batch(self.case, generator).to(self.case.dtype)

    def model(self, name: str) -> nn.Module:
        """
        Raises:
            MissingError: it is not compiled here.
        """
        return self.compiled if name == COMPILED else self.models[name]

    @cached_property
    def compiled(self) -> nn.Module:
        """torch.nn's by torch.compile."""
        if self.device.type == "cpu":
            raise MissingError("takes minutes to compile for a CPU: timed on a GPU only")
        torch._dynamo.reset()
        model = copy.deepcopy(self.models[THEIRS])
        model.compile(dynamic=False)
        return model

    def prepare(self, name: str, way: Way) -> Prepared:
        """One call; training changes a copy, of what is compiled the model that nobody reads afterwards."""
        model = self.model(name)
        return Prepared(way.run(model if name == COMPILED else copy.deepcopy(model), self.batch))

    def work(self, direction: str) -> Work:
        """Of one call, by a trace of our model: all compute the same."""
        forward = _DECODER_RUNS.get(direction, forward_run)
        with torch.device("meta"):
            model = self.architecture.ours(self.case.config).to(self.case.dtype)
        batch = self.architecture.make_batch(self.case, torch.Generator()).to(self.case.dtype, torch.device("meta"))
        call = forward(model, batch)
        if direction == DECODE:
            call()  # which fills the cache
        return model_work(call, WITH_BACKWARD if direction == TRAINING_STEP else FORWARD_ALONE)

    def verdict(self, name: str, way: Way) -> Verdict:
        """Hold the output, and in training the gradient of every parameter, against torch.nn's in float64."""
        seconds: list[float] = []

        def error_ratios() -> dict[str, float]:
            model = self.model(name)
            for _ in range(2):
                started = time.perf_counter()
                got = way.results(model, self.batch)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds.append(time.perf_counter() - started)
            exact = way.results(copy.deepcopy(self.models[THEIRS]).double(), self.batch.to(torch.float64))
            plain = way.results(self.models[THEIRS], self.batch)
            return budget_ratios(
                list(got), *([result[key].reshape(-1) for key in got] for result in (got, exact, plain))
            )

        verdict = judge(error_ratios)
        return replace(verdict, compile_s=max(0.0, seconds[0] - seconds[1])) if len(seconds) == 2 else verdict


def _tokens(case: ModelCase, generator: torch.Generator) -> Tensor:
    shape = case.batch_size, case.config.max_seq_len
    return torch.randint(case.config.vocab_size, shape, device=generator.device, generator=generator)


def _encoder_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    shape = case.batch_size, case.config.max_seq_len, case.config.d_model
    return Batch((_tokens(case, generator),), torch.randn(shape, device=generator.device, generator=generator))


def _decoder_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    return Batch((_tokens(case, generator),), _tokens(case, generator))


def _encoder_decoder_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    source, target = (_tokens(case, generator) for _ in range(2))
    return Batch((source, target), target)


def _vision_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    B, config = case.batch_size, case.config
    shape = B, config.n_channels, config.image_size, config.image_size
    images = torch.randn(shape, device=generator.device, generator=generator)
    return Batch((images,), torch.randint(config.n_classes, (B,), device=generator.device, generator=generator))


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), classes.flatten())


def _config(widths: Mapping[str, int], **others: Any) -> TransformerConfig:
    return TransformerConfig.from_fields({**widths, **others})


ENCODER = Architecture(
    name="encoder",
    ours=Encoder,
    theirs=TorchTextModel,
    make_batch=_encoder_batch,
    loss=F.mse_loss,
    cases={
        "cpu": ModelCase(_config(SMALL, vocab_size=1024, max_seq_len=128, norm_position="post"), 4, torch.float32),
        "cuda": ModelCase(_config(BASE, vocab_size=30522, max_seq_len=512, norm_position="post"), 16, torch.bfloat16),
    },
)
DECODER = Architecture(
    name="decoder",
    ours=Decoder,
    theirs=partial(TorchTextModel, causal=True),
    make_batch=_decoder_batch,
    loss=_cross_entropy,
    cases={
        "cpu": ModelCase(_config(SMALL, vocab_size=1024, max_seq_len=128), 4, torch.float32),
        "cuda": ModelCase(_config(BASE, vocab_size=50257, max_seq_len=1024), 8, torch.bfloat16),
    },
    is_decoder=True,
)
ENCODER_DECODER = Architecture(
    name="encoder_decoder",
    ours=EncoderDecoder,
    theirs=TorchEncoderDecoder,
    make_batch=_encoder_decoder_batch,
    loss=_cross_entropy,
    cases={
        "cpu": ModelCase(_config(SMALL, vocab_size=1024, max_seq_len=64), 4, torch.float32),
        "cuda": ModelCase(_config(BASE, vocab_size=32128, max_seq_len=512), 16, torch.bfloat16),
    },
)
VISION_TRANSFORMER = Architecture(
    name="vision_transformer",
    ours=VisionTransformer,
    theirs=TorchVisionTransformer,
    make_batch=_vision_batch,
    loss=_cross_entropy,
    cases={
        "cpu": ModelCase(_config(SMALL, image_size=64, patch_size=8, n_channels=3, n_classes=10), 8, torch.float32),
        "cuda": ModelCase(
            _config(BASE, image_size=224, patch_size=16, n_channels=3, n_classes=1000), 64, torch.bfloat16
        ),
    },
)
ARCHITECTURES = {
    architecture.name: architecture for architecture in (ENCODER, DECODER, ENCODER_DECODER, VISION_TRANSFORMER)
}
