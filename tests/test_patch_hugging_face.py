"""`patch` of Hugging Face's models, random and small: logits, loss and gradients as before, and what served them."""

import copy
import pickle
from typing import Any

import pytest
import torch
from conftest import World
from drop_in_models import counts, serve_everywhere
from torch import Tensor, nn

import fusedformer
from fusedformer.drop_in import hugging_face_blocks, hugging_face_rules
from fusedformer.drop_in.known_source import digest

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {"vocab_size": 29, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = SPECIAL | {
    "vocab_size": 29, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip
WHISPER = SPECIAL | {
    "vocab_size": 29, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 8,
    "max_target_positions": 16, "num_mel_bins": 4, "decoder_start_token_id": 3,
}  # fmt: skip
GPT2 = SPECIAL | {"vocab_size": 29, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
IMAGES = SIZES | {"image_size": 8, "patch_size": 4}
PRE_NORM, POST_NORM = {"layer_norm": 3, "add_layer_norm": 2}, {"layer_norm": 1, "add_layer_norm": 4}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2, PRE_NORM | {"attention": 2, "gelu": 2, "cross_entropy": 1}),
    "llama": (
        "LlamaForCausalLM", GROUPED | SPECIAL,
        {"rms_norm": 3, "add_rms_norm": 2, "attention": 2, "glu": 2, "cross_entropy": 1},
    ),
    "gemma2": (
        "Gemma2ForCausalLM", GROUPED | SPECIAL, {"rms_norm": 9, "attention": 2, "glu": 2, "cross_entropy": 1}
    ),
    "phi3": (
        "Phi3ForCausalLM", SIZES | SPECIAL | {"num_key_value_heads": 2},
        {"rms_norm": 5, "attention": 2, "glu": 2, "cross_entropy": 1},
    ),
    "bert": (
        "BertForMaskedLM", SIZES | {"max_position_embeddings": 16},
        POST_NORM | {"layer_norm": 2, "attention": 2, "gelu": 3},
    ),
    "vit": ("ViTModel", IMAGES, PRE_NORM | {"attention": 2, "gelu": 2}),
    "t5": ("T5ForConditionalGeneration", T5, {"rms_norm": 12, "attention": 6, "glu": 4}),
    "whisper": (
        "WhisperForConditionalGeneration", WHISPER, {"layer_norm": 6, "add_layer_norm": 6, "attention": 6, "gelu": 4}
    ),
}  # fmt: skip


def make(case: str, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """A model in evaluation mode, and what to call it with."""
    name, settings, _ = CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings | changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5)
    if case == "vit":
        return model, {"pixel_values": torch.randn(2, 3, 8, 8)}
    tokens = torch.randint(4, 29, (2, 6))
    if case == "whisper":
        return model, {"input_features": torch.randn(2, 4, 16), "labels": tokens}
    mask = torch.ones_like(tokens)
    mask[0, 4:] = 0
    return model, {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def results(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Output, loss, and gradients of all parameters."""
    model.zero_grad()
    out = model(**inputs)
    loss = out.loss if hasattr(out, "loss") else out.last_hidden_state.square().mean()
    loss.backward()
    shown = out.logits if hasattr(out, "logits") else out.last_hidden_state
    if "attention_mask" in inputs:  # padding may come out as anything
        shown = shown[inputs["attention_mask"].bool()]
    return [shown.detach(), loss.detach(), *(x.grad for x in model.parameters() if x.grad is not None)]


@pytest.mark.parametrize("served", [True, False], ids=["served", "original"])
@pytest.mark.parametrize("case", CASES)
def test_as_before(case: str, served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make(case)
    before = [type(module) for module in model.modules()]
    settings = copy.deepcopy(model.config)
    expected = results(model, inputs)
    if served:
        serve_everywhere(monkeypatch)
    report = fusedformer.patch(model)
    assert {each.kind for each in report.left} <= {"Gemma2DecoderLayer", "Phi3DecoderLayer"}, report
    assert all("its residuals stay apart from its norms" in each.reason for each in report.left)
    ours = results(model, inputs)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5)
    found = counts(model)
    assert fusedformer.report(model).fallbacks == ()
    if served:
        assert found == CASES[case][2]
    fusedformer.unpatch(model)
    assert [type(module) for module in model.modules()] == before
    assert model.config == settings
    assert model.config._attn_implementation == settings._attn_implementation
    assert not any("fusedformer" in name for module in model.modules() for name in vars(module))
    for mine, theirs in zip(results(model, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.op("attention")
@pytest.mark.parametrize("case", ["llama", "bert"])
def test_through_the_device_code(case: str, world: World) -> None:
    if not world.is_device_code:
        pytest.skip("test_as_before")
    model, inputs = make(case, num_hidden_layers=1)
    model, inputs = model.to(world.device), {name: x.to(world.device) for name, x in inputs.items()}
    expected = results(model, inputs)
    fusedformer.patch(model)
    for mine, theirs in zip(results(model, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert counts(model)["attention"] == 1


def test_training_with_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers wraps the forward of each class of layers in it, ours too."""
    serve_everywhere(monkeypatch)
    model, inputs = make("llama")
    expected = results(model.train(), inputs)
    fusedformer.patch(model)
    model.gradient_checkpointing_enable()
    for mine, theirs in zip(results(model, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5)
    assert counts(model)["add_rms_norm"] == 4  # once more in the backward


def test_half_of_a_model_keeps_its_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a norm in float32 give results in float32, as PyTorch promotes; PyTorch does it then."""
    serve_everywhere(monkeypatch)
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm(8)
    fusedformer.patch(norm)
    assert norm(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.float32
    (fallback,) = fusedformer.report(norm).fallbacks
    assert fallback.reason.startswith("the weight is float32, the input bfloat16")


def test_loss_of_bfloat16_logits_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make("llama")
    model = model.bfloat16()
    expected = model(**inputs, num_items_in_batch=7).loss
    serve_everywhere(monkeypatch)
    fusedformer.patch(model, attention=False, norms=False, activations=False)
    loss = model(**inputs, num_items_in_batch=7).loss
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_a_loss_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_everywhere(monkeypatch)
    model, inputs = make("gpt2")
    fusedformer.patch(model)
    model.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 5
    assert model(**inputs).loss == 5
    del model._loss_function
    assert "cross_entropy" not in counts(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(copied: Any) -> None:
    model, inputs = make("t5")
    expected = results(model, inputs)
    fusedformer.patch(model)
    other = copied(model)
    assert other.config._attn_implementation == "fusedformer"
    fusedformer.unpatch(other)
    assert model.config._attn_implementation == "fusedformer"
    assert {module.config._attn_implementation for module in other.modules() if hasattr(module, "config")} == {"sdpa"}
    for mine, theirs in zip(results(other, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_generate_writes_the_same() -> None:
    model, inputs = make("llama")
    prompt = {name: inputs[name][1:] for name in ("input_ids", "attention_mask")}
    expected = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    with fusedformer.patch(model):
        assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False), expected)


def test_save_pretrained_saves_the_model_as_it_was(tmp_path: Any) -> None:
    model, inputs = make("gpt2")
    fusedformer.patch(model)
    model.save_pretrained(tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is transformers.GPT2LMHeadModel
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_changed_forward_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As other libraries change classes: nothing of ours comes on top."""
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm
    original = norm.forward

    def counted(self: Any, hidden_states: Tensor) -> Tensor:
        return original(self, hidden_states) + 1

    monkeypatch.setattr(norm, "forward", counted)
    model, _ = make("llama")
    report = fusedformer.patch(model)
    assert {each.reason for each in report.left if each.kind == "LlamaRMSNorm"} == {
        "its forward is not one that we know"
    }


def test_every_digest_is_of_a_class_of_this_version() -> None:
    """Those that an update of transformers changes are left from then on: this says which."""
    names = (
        "llama.LlamaRMSNorm", "t5.T5LayerNorm", "gpt_oss.GptOssRMSNorm", "nemotron_h.NemotronHRMSNorm",
        "moshi.MoshiRMSNorm", "llama4.Llama4TextL2Norm", "gemma.GemmaRMSNorm", "gemma3n.Gemma3nRMSNorm",
        "llama.LlamaMLP", "qwen2_5_vl.Qwen2_5_VLMLP", "phi3.Phi3MLP", "t5.T5DenseGatedActDense", "bert.BertOutput",
        "gpt2.GPT2Block", "llama.LlamaDecoderLayer", "vit.ViTLayer", "whisper.WhisperEncoderLayer",
        "whisper.WhisperDecoderLayer",
    )  # fmt: skip
    activations = ("GELUActivation", "NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation")
    found = {digest(getattr(transformers.activations, name).forward) for name in activations}
    for name in names:
        family, _, kind = name.partition(".")
        module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=[kind])
        found.add(digest(getattr(module, kind).forward))
    known = {key[0] for key in hugging_face_rules.BY_SOURCE | hugging_face_blocks.BY_SOURCE}
    assert known == found


NORMS = {
    "gpt_oss.GptOssRMSNorm": "rms_norm_hf_wide", "moshi.MoshiRMSNorm": "rms_norm_hf_wide",
    "llama4.Llama4TextL2Norm": "rms_norm_hf_plain", "gemma3n.Gemma3nRMSNorm": "rms_norm_hf_scaled",
    "nemotron_h.NemotronHRMSNorm": "rms_norm_hf_wide",
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_everywhere(monkeypatch)
    family, _, kind = name.partition(".")
    cls = getattr(__import__(f"transformers.models.{family}.modeling_{family}", fromlist=[kind]), kind)
    norm = cls() if kind == "Llama4TextL2Norm" else cls(8)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    expected = norm(x)
    report = fusedformer.patch(norm)
    assert [each.rule for each in report.replaced] == [NORMS[name]]
    y = norm(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.01, atol=0.01)
    assert counts(norm) == {"rms_norm": 1}


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python"])
def test_activations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_everywhere(monkeypatch)
    activation = transformers.activations.ACT2FN[name]
    x = torch.linspace(-6, 6, 50)
    expected = activation(x)
    report = fusedformer.patch(activation)
    torch.testing.assert_close(activation(x), expected, rtol=1e-5, atol=1e-6)
    assert counts(activation) == ({} if name == "gelu_python" else {"gelu": 1})
    assert [each.reason for each in report.left] == (
        ["the function it calls is not one that we know"] if name == "gelu_python" else []
    )
