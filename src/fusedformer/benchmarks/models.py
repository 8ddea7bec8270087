"""Encoder, Decoder and VisionTransformer against the same models of torch.nn: same sizes, same weights, same answers.

Forward is evaluation without gradients; a training step is forward, loss, backward and AdamW. Dropout is 0, so that
both compute the same function. B batch, S sequence.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.benchmarks.harness.accuracy import budget_ratios
from fusedformer.benchmarks.harness.comparison import OURS, Comparison, Contender, Verdict, judge
from fusedformer.benchmarks.harness.op import FORWARD, WORLDS
from fusedformer.benchmarks.harness.timing import Run
from fusedformer.benchmarks.harness.torch_models import TorchTextModel, TorchVisionTransformer, load_ours, their_name
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.vision_transformer import VisionTransformer

THEIRS = "torch.nn"
TRAINING_STEP = "training step"
# Four narrow layers take a CPU tens of milliseconds; twelve of width 768 are BERT-base, GPT-2 and ViT-B.
SMALL = {"d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 1024}
BASE = {"d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 3072}
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ModelCase:
    """A model's sizes, the number of sequences or images in a batch, and the dtype of the weights."""

    config: TransformerConfig
    batch_size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        config = self.config
        length = f"S={config.max_seq_len}" if config.max_seq_len else f"image={config.image_size}/{config.patch_size}"
        return f"B={self.batch_size} {length} d_model={config.d_model} n_layers={config.n_layers}"


@dataclass(frozen=True)
class Batch:
    """What a model reads, and what its output is held against in training."""

    inputs: Tensor
    targets: Tensor

    def to(self, dtype: torch.dtype) -> "Batch":
        """In another dtype, but for class and token numbers."""
        return Batch(*(t.to(dtype) if t.is_floating_point() else t for t in (self.inputs, self.targets)))


@dataclass(frozen=True)
class Architecture:
    """One architecture: ours, torch.nn's, and what it trains on."""

    name: str
    ours: Callable[[TransformerConfig], nn.Module]
    theirs: Callable[[TransformerConfig], nn.Module]
    make_batch: Callable[[ModelCase, torch.Generator], Batch]
    loss: Loss  # of output and targets
    cases: Mapping[str, ModelCase]  # by device type


def comparisons(architecture: Architecture, device: torch.device, seed: int) -> list[Comparison]:
    """Forward and training step of one architecture."""
    pair = _Pair(architecture, architecture.cases[device.type], device, seed)
    return [
        Comparison(
            subject=architecture.name,
            case=str(pair.case),
            dtype=str(pair.case.dtype).removeprefix("torch."),
            world=WORLDS[device.type],
            direction=direction,
            contenders={name: Contender(partial(verdict, name), partial(prepare, name)) for name in (OURS, THEIRS)},
        )
        for direction, verdict, prepare in (
            (FORWARD, pair.judge_forward, pair.prepare_forward),
            (TRAINING_STEP, pair.judge_training, pair.prepare_training),
        )
    ]


def forward_run(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """One call: the output of a batch, without gradients."""
    model.eval()
    return torch.inference_mode()(lambda: model(batch.inputs))


def training_run(model: nn.Module, batch: Batch, loss: Loss) -> Run:
    """One call: forward, loss, backward and an AdamW step, always on the same batch."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(batch.inputs), batch.targets).backward()
        optimizer.step()

    return step


def gradients(model: nn.Module, batch: Batch, loss: Loss) -> dict[str, Tensor]:
    """The output, and by torch.nn's names the gradient of each parameter."""
    output = model.train()(batch.inputs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    values = torch.autograd.grad(loss(output, batch.targets), parameters)
    return {
        "out": output.detach(),
        **{f"d{their_name(name)}": value for name, value in zip(names, values, strict=True)},
    }


class _Pair:
    """Our model and torch.nn's with the same weights, built when they are first needed."""

    def __init__(self, architecture: Architecture, case: ModelCase, device: torch.device, seed: int) -> None:
        self.architecture, self.case, self.device, self.seed = architecture, case, device, seed

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        torch.manual_seed(self.seed)
        ours, theirs = self.architecture.ours(self.case.config), self.architecture.theirs(self.case.config)
        load_ours(theirs, ours)
        return {name: model.to(self.device, self.case.dtype) for name, model in ((OURS, ours), (THEIRS, theirs))}

    @cached_property
    def batch(self) -> Batch:
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return self.architecture.make_batch(self.case, generator).to(self.case.dtype)

    def prepare_forward(self, name: str) -> Run:
        return forward_run(self.models[name], self.batch)

    def prepare_training(self, name: str) -> Run:
        return training_run(copy.deepcopy(self.models[name]), self.batch, self.architecture.loss)

    def judge_forward(self, name: str) -> Verdict:
        """Hold the output against torch.nn's in float64."""

        def outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            return {"out": forward_run(model, batch)()}

        return judge(partial(self._error_ratios, name, outputs))

    def judge_training(self, name: str) -> Verdict:
        """Hold the output and the gradient of every parameter against torch.nn's in float64."""
        return judge(partial(self._error_ratios, name, partial(gradients, loss=self.architecture.loss)))

    def _error_ratios(self, name: str, results: Callable[[nn.Module, Batch], dict[str, Tensor]]) -> dict[str, float]:
        got = results(self.models[name], self.batch)
        exact = results(copy.deepcopy(self.models[THEIRS]).double(), self.batch.to(torch.float64))
        plain = results(self.models[THEIRS], self.batch)
        return budget_ratios(list(got), *([result[key].reshape(-1) for key in got] for result in (got, exact, plain)))


def _tokens(case: ModelCase, generator: torch.Generator) -> Tensor:
    shape = case.batch_size, case.config.max_seq_len
    return torch.randint(case.config.vocab_size, shape, device=generator.device, generator=generator)


def _encoder_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    shape = case.batch_size, case.config.max_seq_len, case.config.d_model
    return Batch(_tokens(case, generator), torch.randn(shape, device=generator.device, generator=generator))


def _decoder_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    return Batch(_tokens(case, generator), _tokens(case, generator))


def _vision_batch(case: ModelCase, generator: torch.Generator) -> Batch:
    B, config = case.batch_size, case.config
    shape = B, config.n_channels, config.image_size, config.image_size
    images = torch.randn(shape, device=generator.device, generator=generator)
    return Batch(images, torch.randint(config.n_classes, (B,), device=generator.device, generator=generator))


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
ARCHITECTURES = {architecture.name: architecture for architecture in (ENCODER, DECODER, VISION_TRANSFORMER)}
