"""Token for token what Hugging Face's `generate` writes: greedy and beams, padded prompts, penalties, end tokens."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import random_tokens
from torch import Tensor

from fusedformer.transformer.huggingface.load import from_huggingface
from fusedformer.transformer.sampling import Sampler

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

NEW = 12
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def llama() -> Any:
    config = transformers.LlamaConfig(
        **SIZES, **NO_TOKENS, num_key_value_heads=2, vocab_size=31, max_position_embeddings=48
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(**NO_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=48, vocab_size=31)
    return transformers.GPT2LMHeadModel(config)


def t5() -> Any:
    config = transformers.T5Config(
        d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, vocab_size=31, relative_attention_num_buckets=8,
        relative_attention_max_distance=12, decoder_start_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


@functools.cache
def pair(family: Callable[[], Any]) -> tuple[Any, Any]:
    """A model of ours, and Hugging Face's of the same random weights."""
    theirs = family().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Large ones, and positions above all: else it writes one token for ever.
            noise = (0.7 if "wpe" in name else 0.3) * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (parameter.dim() == 1 and "bias" not in name))
    ours = from_huggingface(theirs.config.to_dict(), theirs.state_dict())
    ours.config = dataclasses.replace(ours.config, max_seq_len=48)
    return ours, theirs


def theirs_written(theirs: Any, tokens: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    """The new tokens that Hugging Face writes, filled up to as many as we write."""
    fill = settings.get("eos_token_id", [0])[0]
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    written = theirs.generate(tokens, attention_mask=mask, max_new_tokens=NEW, pad_token_id=fill, **settings)
    written = written[:, 1 if theirs.config.is_encoder_decoder else tokens.shape[1] :]
    return torch.nn.functional.pad(written, (0, NEW - written.shape[1]), value=fill)


def prompts() -> tuple[Tensor, Tensor]:
    """Prompts, and where they are not padding, which is on the left."""
    return random_tokens(6, 9, vocab_size=31), torch.arange(9) >= torch.tensor([[0], [4], [8], [1], [0], [6]])


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("eos", [None, [13], [13, 7, 22]])
@pytest.mark.parametrize("family", [gpt2, llama, t5])
def test_greedy(family: Callable[[], Any], eos: list[int] | None, static_cache: bool) -> None:
    (ours, theirs), (tokens, mask) = pair(family), prompts()
    settings = {} if eos is None else {"eos_token_id": eos}
    expected = theirs_written(theirs, tokens, mask, do_sample=False, **settings)
    found = ours.generate(tokens, NEW, attention_mask=mask, temperature=0, eos_token_id=eos, static_cache=static_cache)[
        :, -NEW:
    ]
    assert torch.equal(found, expected)
    if eos is None:
        assert len(expected.unique()) > 4


BEAMS: list[tuple[Callable[[], Any], int, float, list[int] | None]] = [
    *((gpt2, 5, penalty, eos) for penalty in (-1.0, 0.0, 1.0, 2.5) for eos in (None, [13], [13, 7])),
    (gpt2, 2, 1.0, [13]),
    (llama, 4, 1.0, [13, 7]),
    (t5, 4, 1.0, [13, 7]),
]


@pytest.mark.parametrize(("family", "n_beams", "length_penalty", "eos"), BEAMS)
def test_beams(family: Callable[[], Any], n_beams: int, length_penalty: float, eos: list[int] | None) -> None:
    (ours, theirs), (tokens, mask) = pair(family), prompts()
    settings = {} if eos is None else {"eos_token_id": eos}
    expected = theirs_written(
        theirs, tokens, mask, do_sample=False, num_beams=n_beams, length_penalty=length_penalty, **settings
    )
    found = ours.beam_search(
        tokens, NEW, n_beams, attention_mask=mask, length_penalty=length_penalty, eos_token_id=eos
    )[:, -NEW:]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("penalty", [1.4, 0.7])
def test_repetition_penalty(penalty: float) -> None:
    (ours, theirs), (tokens, _) = pair(gpt2), prompts()
    expected = theirs_written(theirs, tokens, do_sample=False, repetition_penalty=penalty)
    assert torch.equal(ours.generate(tokens, NEW, temperature=0, repetition_penalty=penalty)[:, 9:], expected)
    assert not torch.equal(ours.generate(tokens, NEW, temperature=0)[:, 9:], expected)
    expected = theirs_written(theirs, tokens, do_sample=False, repetition_penalty=penalty, num_beams=3)
    assert torch.equal(ours.beam_search(tokens, NEW, 3, repetition_penalty=penalty)[:, 9:], expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.7, "min_p": 0.3},
    ],
)
def test_narrowed_distributions(settings: dict[str, Any]) -> None:
    """Our probabilities of each token are those left by their processors, in the order in which they apply them."""
    from transformers.generation import logits_process

    logits = 2 * torch.randn(50, 31, generator=torch.Generator().manual_seed(4))
    scores = logits
    tokens_so_far: Any = torch.zeros(50, 1, dtype=torch.long)  # none of these looks at it
    for name, process in (
        ("temperature", logits_process.TemperatureLogitsWarper),
        ("top_k", logits_process.TopKLogitsWarper),
        ("top_p", logits_process.TopPLogitsWarper),
        ("min_p", logits_process.MinPLogitsWarper),
    ):
        if name in settings:
            scores = process(settings[name])(tokens_so_far, scores)
    narrowed, tokens = Sampler(**settings).narrow(logits)
    tokens = torch.arange(31).expand_as(narrowed) if tokens is None else tokens
    found = torch.zeros(50, 31).scatter(1, tokens, narrowed.softmax(dim=1))
    torch.testing.assert_close(found, scores.softmax(dim=1))
