"""Hugging Face's models by `attn_implementation="fusedformer"`: what their own eager attention computes."""

import itertools
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")

import transformers
from conftest import World
from drop_in_models import serve_everywhere
from hugging_face_models import (
    DECODERS,
    LENGTH,
    OTHERS,
    assert_same,
    inputs_of,
    make_model,
    padding_mask,
    random_tokens,
)

import fusedformer
from fusedformer.drop_in import calls, transformers_hook

pytestmark = pytest.mark.op("attention")
NAME = fusedformer.register_transformers()
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 0, 1, 2, 3, 4, 5]])


def model_of(kind: str) -> Any:
    model = make_model(kind)
    model.set_attn_implementation(NAME)
    return model


def output_of(model: Any, padding: Tensor | None, inputs: dict[str, Tensor]) -> Tensor:
    """What the model says of tokens that are none of padding."""
    result = model(**inputs)
    out = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return out if padding is None or "decoder_input_ids" in inputs else out[padding.bool()]


@pytest.fixture(autouse=True)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU gets, on a CPU too, but for the test of what a CPU gets."""
    if "without_a_kernel" not in request.node.name:
        serve_everywhere(monkeypatch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of every call of `attention`, with the shape of k under "k"."""
    settings: list[dict[str, Any]] = []
    attention = transformers_hook.attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        settings.append({**given, "k": tuple(k.shape)})
        return attention(q, k, v, **given)

    monkeypatch.setattr(transformers_hook, "attention", spy)
    return settings


@pytest.mark.parametrize("padding", [None, "neither", "left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders(world: World, kind: str, padding: str | None) -> None:
    if world.name == "emulated" and (kind, padding) != ("gpt_oss", "left"):
        pytest.skip("emulated world: the one with most features, padded on the left, for time")
    model, mask = make_model(kind).to(world.device), padding_mask(padding)
    inputs = {name: x.to(world.device) for name, x in inputs_of(kind, mask).items()}
    assert_same(model, partial(output_of, model, mask, inputs))
    assert calls.of(model.modules()).count("attention") == 2
    assert not calls.of(model.modules()).fallbacks


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("kind", [*DECODERS, "bert", "t5"])
def test_without_a_kernel_pytorch_computes(kind: str, padding: str | None, asked: list[dict[str, Any]]) -> None:
    model, mask = make_model(kind), padding_mask(padding)
    inputs = inputs_of(kind, mask)
    assert_same(model, partial(output_of, model, mask, inputs))
    assert len(asked) == (2 if kind in ("gemma2", "gpt_oss") else 0)  # PyTorch's function has no soft caps and no sinks


@pytest.mark.parametrize(("kind", "padding"), [*((kind, None) for kind in OTHERS), ("bert", "right"), ("t5", "right")])
def test_encoders(world: World, kind: str, padding: str | None) -> None:
    if world.name == "emulated" and kind != "vit":
        pytest.skip("emulated world: one encoder, for time")
    model, mask = make_model(kind).to(world.device), padding_mask(padding)
    inputs = {name: x.to(world.device) for name, x in inputs_of(kind, mask).items()}
    assert_same(model, partial(output_of, model, mask, inputs))
    assert calls.of(model.modules()).count("attention") == (6 if "decoder_input_ids" in inputs else 2)
    assert not calls.of(model.modules()).fallbacks


@pytest.mark.parametrize(
    ("kind", "padding", "cache"),
    [("whisper", None, None), *itertools.product([*DECODERS, "t5"], [None, "left"], [None, "static"])],
)
def test_generate_writes_the_same_tokens(kind: str, padding: str | None, cache: str | None) -> None:
    model, inputs = make_model(kind), inputs_of(kind, padding_mask(padding))
    inputs.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
    written = []
    for name in ("eager", NAME):
        model.set_attn_implementation(name)
        written.append(model.generate(**inputs, **settings))
    assert written[0].shape[1] > 1
    assert torch.equal(*written)


@pytest.mark.parametrize(
    "kind", [kind for kind in DECODERS if kind != "gpt_oss"]
)  # it makes its masks without positions
def test_packed_sequences_do_not_see_each_other(kind: str, asked: list[dict[str, Any]]) -> None:
    model = make_model(kind)
    inputs = {"input_ids": random_tokens(), "position_ids": POSITIONS}
    assert_same(model, lambda: model(**inputs, use_cache=False).logits)
    assert [call["cu_seqlens_q"].tolist() for call in asked] == [[0, 4, 9, 12, 18]] * 2
    assert all(call["k"][0] == 2 * LENGTH for call in asked)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
@torch.no_grad()
def test_cu_seq_lens_of_a_collator(kind: str, asked: list[dict[str, Any]]) -> None:
    model = model_of(kind)
    tokens, positions = random_tokens(rows=1, length=12), torch.tensor([[*range(7), *range(5)]])
    starts = torch.tensor([0, 7, 12], dtype=torch.int32)
    lengths = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 7, "max_length_k": 7}
    out = model(tokens, position_ids=positions, use_cache=False, **lengths).logits
    assert [call["cu_seqlens_q"].tolist() for call in asked] == [[0, 7, 12]] * 2
    model.set_attn_implementation("eager")
    alone = [model(part, use_cache=False).logits for part in (tokens[:, :7], tokens[:, 7:])]
    torch.testing.assert_close(out, torch.cat(alone, 1), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("cache", ["DynamicCache", "StaticCache"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
@torch.no_grad()
def test_a_prompt_in_two_parts(kind: str, cache: str) -> None:
    model = make_model(kind)
    tokens, results = random_tokens(), []
    for name in ("eager", NAME):
        model.set_attn_implementation(name)
        settings = {"max_cache_len": 16} if cache == "StaticCache" else {}
        past = getattr(transformers, cache)(config=model.config, **settings)
        first = model(tokens[:, :4], past_key_values=past).logits
        results.append(torch.cat([first, model(tokens[:, 4:], past_key_values=past).logits], 1))
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "padding", "window"),
    [
        ("llama", None, (None, 0)),
        ("llama", "neither", (None, 0)),
        ("llama", "left", (None, 0)),
        ("mistral", "left", (4, 0)),
        ("bert", "right", (None, None)),
    ],
)
def test_no_mask_is_larger_than_the_padding(
    kind: str, padding: str | None, window: Any, asked: list[dict[str, Any]]
) -> None:
    output_of(model_of(kind), None, inputs_of(kind, padding_mask(padding)))
    hides = padding not in (None, "neither")
    assert len(asked) == 2
    for call in asked:
        assert call["window"] == window
        assert (call["mask"].shape == (2, 1, 1, LENGTH)) if hides else call["mask"] is None
        assert call["bias"] is None


def test_keys_that_a_static_cache_has_not_yet_are_left_out(asked: list[dict[str, Any]]) -> None:
    model = model_of("llama")
    model.generate(random_tokens(), max_new_tokens=2, do_sample=False, cache_implementation="static")
    assert asked[0]["k"][1] == LENGTH
    assert asked[0]["mask"] is None


def test_a_mask_of_the_callers_own() -> None:
    model = make_model("llama")
    allowed = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.7
    allowed |= torch.eye(LENGTH, dtype=torch.bool)
    added = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    for mask in (allowed, added):
        out = {}
        for name in ("eager", NAME):
            model.set_attn_implementation(name)
            given = added if name == "eager" else mask
            out[name] = model(random_tokens(), attention_mask=given).logits
        torch.testing.assert_close(out[NAME], out["eager"], rtol=1e-4, atol=2e-5)


def test_attention_weights_are_left_to_the_model() -> None:
    model = model_of("llama")
    weights = model(random_tokens(), output_attentions=True).attentions
    model.set_attn_implementation("eager")
    expected = model(random_tokens(), output_attentions=True).attentions
    torch.testing.assert_close(weights, expected)
    found = calls.of(model.modules())
    assert not found.served
    ((op, reason),) = found.fallbacks
    assert (op, found.fallbacks[op, reason]) == ("attention", 2)
    assert "output_attentions" in reason


def test_an_argument_that_only_the_model_knows_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["transformers.models.llama.modeling_llama"]

    def eager(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, head_mask: Any = None, **_: Any
    ) -> Any:
        return "the model's own", head_mask

    monkeypatch.setattr(module, "eager_attention_forward", eager)
    monkeypatch.setattr(transformers_hook, "_heeded", {})
    layer = model_of("llama").model.layers[0].self_attn
    q, kv = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    assert transformers_hook.attention_forward(layer, q, kv, kv, None, head_mask=7) == ("the model's own", 7)
    assert transformers_hook.attention_forward(layer, q, kv, kv, None, something_else=7)[0].shape == (1, 3, 4, 8)
    assert calls.of([layer]).fallbacks == {("attention", "head_mask is given"): 1}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side"), [("gpt2", None), ("mistral", "left")])
def test_compiles_to_one_graph(kind: str, side: str | None) -> None:
    model, padding = model_of(kind), padding_mask(side)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs: dict[str, Any] = {**inputs_of(kind, padding), "use_cache": False}
    out = output_of(compiled, padding, inputs)
    torch.testing.assert_close(out, output_of(model, padding, inputs), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    model, padding = make_model("mistral"), padding_mask("left")
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert_same(model, lambda: output_of(model, padding, {**inputs_of("mistral", padding)}))


def test_a_causal_layer_without_a_mask_sees_no_later_key() -> None:
    layer = make_model("llama").model.layers[0].self_attn
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 9, 8)
    out, _ = transformers_hook.attention_forward(layer, q, k, k, None)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k[:, :, :5], k[:, :, :5], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))
    out, _ = transformers_hook.attention_forward(layer, q, k[:, :, :3], k[:, :, :3], None)  # fewer keys than queries
    keys = k[:, :, :3]
    expected = torch.nn.functional.scaled_dot_product_attention(q, keys, keys, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_bad_calls_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_model("llama").model.layers[0].self_attn
    q = torch.randn(1, 4, 3, 8)
    with pytest.raises(ValueError, match="cache is object, expected none: no continuous batching"):
        transformers_hook.attention_forward(layer, q, q, q, None, cache=object())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"register_transformers: needs transformers 4\.53 or newer"):
        fusedformer.register_transformers()
