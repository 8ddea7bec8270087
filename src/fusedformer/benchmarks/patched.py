"""Models of Hugging Face and timm, patched and as they are: forward and backward of a training step.

The contenders have the same weights: "ours" is the model patched, "sdpa" the model as it is, over PyTorch's
scaled_dot_product_attention, "eager" the one with the library's own attention. Answers are held against float64 on a
few short rows, for a model in float64 at full length would not fit. B batch, S sequence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from fusedformer.benchmarks.harness.accuracy import budget_ratios
from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict, Work, judge
from fusedformer.benchmarks.harness.implementation import OURS, MissingError, package_version
from fusedformer.benchmarks.harness.instruments import Prepared
from fusedformer.benchmarks.harness.libraries import load_library
from fusedformer.benchmarks.harness.model_flops import WITH_BACKWARD, model_work
from fusedformer.benchmarks.harness.op import BOTH, WORLDS
from fusedformer.drop_in.patch import patch

SDPA, EAGER = "sdpa", "eager"
CONTENDERS = (OURS, SDPA, EAGER)
JUDGED = {"B": 2, "S": 96}  # at most
NOTHING = 1e-7  # a gradient of a loss near 1 that is no larger is none
Sizes = Mapping[str, int]
Inputs = dict[str, Tensor]
Results = dict[str, Tensor]


@dataclass(frozen=True)
class PatchedModel:
    """A model of another library, and what it trains on.

    `build(widths, attention)` makes it; `loss(model, inputs)` is what is differentiated, of `make_inputs(sizes)`.
    """

    name: str
    library: str
    build: Callable[[Mapping[str, Any], str], nn.Module]
    make_inputs: Callable[[Mapping[str, Any], Sizes, torch.Generator], Inputs]
    loss: Callable[[nn.Module, Inputs], Tensor]
    widths: Mapping[str, Mapping[str, Any]]  # by device type
    sizes: Mapping[str, Sizes]  # by device type


def comparisons(model: PatchedModel, device: torch.device, seed: int) -> list[Comparison]:
    """Forward and backward of one model; nothing is built yet."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bench = _Bench(model, device, dtype, seed)
    sizes = model.sizes[device.type]
    return [
        Comparison(
            subject=model.name,
            case=" ".join(f"{name}={value}" for name, value in sizes.items()),
            dtype=str(dtype).removeprefix("torch."),
            world=WORLDS[device.type],
            direction=BOTH,
            contenders={
                name: Contender(partial(bench.verdict, name), partial(bench.prepare, name), bench.version(name))
                for name in CONTENDERS
            },
            sizes=sizes,
            count=bench.work,
        )
    ]


class _Bench:
    def __init__(self, model: PatchedModel, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.model, self.device, self.dtype, self.seed = model, device, dtype, seed
        self.sizes = model.sizes[device.type]

    def version(self, contender: str) -> str:
        return package_version("fusedformer" if contender == OURS else self.model.library)

    def make(self, contender: str, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
        """The model in training mode, with the same weights for each contender, on this device or the one measured.

        Raises:
            MissingError: its library cannot be imported.
        """
        try:
            load_library(self.model.library)
        except ImportError as error:
            raise MissingError(f"{self.model.library} is not to be had: {error}") from None
        torch.manual_seed(self.seed)
        with device or self.device:
            made = self.model.build(self.model.widths[self.device.type], EAGER if contender == EAGER else SDPA)
        made = made.to(dtype=self.dtype).to(dtype=dtype).train()
        if contender == OURS:
            patch(made)
        return made

    def inputs(self, sizes: Sizes, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator(self.device).manual_seed(self.seed)
        made = self.model.make_inputs(self.model.widths[self.device.type], sizes, generator)
        return {name: x.to(self.dtype).to(dtype) if x.is_floating_point() else x for name, x in made.items()}

    def work(self) -> Work:
        """Of one call, by a trace of the library's model."""
        meta = torch.device("meta")
        model = self.make(SDPA, self.dtype, meta)
        inputs = {name: x.to(meta) for name, x in self.inputs(self.sizes, self.dtype).items()}
        return model_work(partial(self.model.loss, model, inputs), WITH_BACKWARD)

    def prepare(self, contender: str) -> Prepared:
        """One call: forward and backward; gradients are dropped, not added up."""
        model = self.make(contender, self.dtype)
        inputs = self.inputs(self.sizes, self.dtype)

        def run() -> None:
            model.zero_grad()
            self.model.loss(model, inputs).backward()

        return Prepared(run)

    def verdict(self, contender: str) -> Verdict:
        """Hold the loss and the gradient of every parameter against the library's model in float64."""

        def error_ratios() -> dict[str, float]:
            exact, plain = self.exact, self.plain
            got = {name: x for name, x in self.results(contender, self.dtype).items() if name in exact}
            results = ([result[name].reshape(-1) for name in got] for result in (got, exact, plain))
            return budget_ratios(list(got), *results)

        return judge(error_ratios)

    @cached_property
    def exact(self) -> Results:
        """What float64 gives, once for all contenders; without gradients that are 0.

        Hugging Face takes the loss of language models in float32, whatever the logits are. A gradient of 0, such as
        that of the bias of keys, is rounding errors alone, of which no contender's are the right ones.
        """
        found = self.results(EAGER, torch.float64).items()
        return {name: x.double() for name, x in found if x.abs().max() > NOTHING}

    @cached_property
    def plain(self) -> Results:
        """What the library's own attention gives in the dtype that is timed: the measure of the error budget."""
        return self.results(EAGER, self.dtype)

    def results(self, contender: str, dtype: torch.dtype) -> Results:
        """The loss of a few short rows, and by name the gradient of each parameter that has one."""
        model = self.make(contender, dtype)
        sizes = {name: min(size, JUDGED.get(name, size)) for name, size in self.sizes.items()}
        loss = self.model.loss(model, self.inputs(sizes, dtype))
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        found = {name: grad for name, grad in zip(named, gradients, strict=True) if grad is not None}
        return {"loss": loss.detach().reshape(1), **found}


def _hugging_face(config_name: str, model_name: str, widths: Mapping[str, Any], attention: str) -> nn.Module:
    import transformers

    config = getattr(transformers, config_name)(**widths)
    config._attn_implementation = attention
    return getattr(transformers, model_name)(config)


def _timm(widths: Mapping[str, Any], attention: str) -> nn.Module:
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(attention != EAGER)
    try:
        return timm.models.vision_transformer.VisionTransformer(**widths)
    finally:
        set_fused_attn(True)


def _tokens(widths: Mapping[str, Any], sizes: Sizes, generator: torch.Generator) -> Tensor:
    shape = sizes["B"], sizes["S"]
    return torch.randint(widths["vocab_size"], shape, device=generator.device, generator=generator)


def _text(widths: Mapping[str, Any], sizes: Sizes, generator: torch.Generator) -> Inputs:
    tokens = _tokens(widths, sizes, generator)
    return {"input_ids": tokens, "labels": tokens}


def _images(widths: Mapping[str, Any], sizes: Sizes, generator: torch.Generator) -> Inputs:
    side = sizes["image"]
    images = torch.randn(sizes["B"], 3, side, side, device=generator.device, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(sizes["B"], device=generator.device)}


def _own_loss(model: nn.Module, inputs: Inputs) -> Tensor:
    return model(**inputs).loss


def _class_loss(model: nn.Module, inputs: Inputs) -> Tensor:
    return nn.functional.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])


# Without dropout, so that all contenders compute the same.
_BERT_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GPT2_OFF = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_LLAMA = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192}

MODELS = (
    PatchedModel(
        "patched_bert", "transformers", partial(_hugging_face, "BertConfig", "BertForMaskedLM"), _text, _own_loss,
        {"cuda": {"vocab_size": 30522, **_BERT_OFF}, "cpu": {"vocab_size": 99, **_SMALL, **_BERT_OFF}},
        {"cuda": {"B": 32, "S": 512}, "cpu": {"B": 4, "S": 64}},
    ),
    PatchedModel(
        "patched_gpt2", "transformers", partial(_hugging_face, "GPT2Config", "GPT2LMHeadModel"), _text, _own_loss,
        {
            "cuda": {"vocab_size": 50257, **_GPT2_OFF},
            "cpu": {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, **_GPT2_OFF},
        },
        {"cuda": {"B": 8, "S": 1024}, "cpu": {"B": 4, "S": 64}},
    ),
    PatchedModel(
        "patched_vit", "transformers", partial(_hugging_face, "ViTConfig", "ViTForImageClassification"),
        _images, _own_loss,
        {
            "cuda": {"num_labels": 1000, **_BERT_OFF},
            "cpu": {"num_labels": 9, "image_size": 64, **_SMALL, **_BERT_OFF},
        },
        {"cuda": {"B": 128, "image": 224}, "cpu": {"B": 4, "image": 64}},
    ),
    PatchedModel(
        "patched_t5", "transformers", partial(_hugging_face, "T5Config", "T5ForConditionalGeneration"),
        _text, _own_loss,
        {
            "cuda": {
                "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
                "dropout_rate": 0.0, "decoder_start_token_id": 0,
            },
            "cpu": {
                "vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
                "dropout_rate": 0.0, "decoder_start_token_id": 0,
            },
        },
        {"cuda": {"B": 16, "S": 512}, "cpu": {"B": 4, "S": 64}},
    ),
    PatchedModel(
        "patched_llama", "transformers", partial(_hugging_face, "LlamaConfig", "LlamaForCausalLM"), _text, _own_loss,
        {
            "cuda": {"vocab_size": 32000, "num_key_value_heads": 8, "max_position_embeddings": 4096, **_LLAMA},
            "cpu": {"vocab_size": 99, "num_key_value_heads": 2, **_SMALL},
        },
        {"cuda": {"B": 1, "S": 4096}, "cpu": {"B": 2, "S": 64}},
    ),
    PatchedModel(
        "patched_timm_vit", "timm", _timm, _images, _class_loss,
        {
            "cuda": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
            "cpu": {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 9},
        },
        {"cuda": {"B": 64, "image": 224}, "cpu": {"B": 4, "image": 64}},
    ),
)  # fmt: skip
PATCHED = {model.name: model for model in MODELS}
