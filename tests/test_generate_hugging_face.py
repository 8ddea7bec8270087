"""Token for token what Hugging Face's `generate` writes: greedy and beams, padded prompts, penalties, end tokens."""

from typing import Any

import pytest
import torch
from models import make_model, random_tokens
from torch import Tensor

from fusedformer import Decoder
from fusedformer.transformer.sampling import Sampler

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

NEW = 24
BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


@pytest.fixture(scope="module")
def models() -> tuple[Decoder, Any]:
    """Our decoder, and GPT-2 as Hugging Face has it, of the same random weights."""
    ours = make_model("decoder", n_kv_heads=None, max_seq_len=48, vocab_size=31)
    ours.position_embedding.weight.data *= 3  # so that it does not write one token for ever
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64, "vocab_size": 31, "n_positions": 48}
    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.transformer.load_state_dict(gpt2_tensors(ours))
    return ours, theirs


def gpt2_tensors(model: Decoder) -> dict[str, Tensor]:
    """Our tensors under GPT-2's names; its linear layers hold their weights the other way round."""
    named: dict[str, Tensor] = {
        "wte.weight": model.token_embedding.weight.data,
        "wpe.weight": model.position_embedding.weight.data,
        **{f"ln_f.{kind}": parameter.data for kind, parameter in model.stack.final_norm.named_parameters()},
    }
    for index, block in enumerate(model.stack.blocks):
        for ours, theirs in BLOCK.items():
            module = block.get_submodule(ours)
            for kind, parameter in module.named_parameters():
                is_matrix = parameter.dim() == 2
                named[f"h.{index}.{theirs}.{kind}"] = parameter.data.T if is_matrix else parameter.data
    return named


def theirs_written(theirs: Any, tokens: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    """What Hugging Face writes behind the prompts, as long as we write it."""
    fill = settings.get("eos_token_id", [0])[0]
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    written = theirs.generate(tokens, attention_mask=mask, max_new_tokens=NEW, pad_token_id=fill, **settings)
    return torch.nn.functional.pad(written, (0, tokens.shape[1] + NEW - written.shape[1]), value=fill)


def prompts() -> tuple[Tensor, Tensor]:
    return random_tokens(6, 9, vocab_size=31), torch.arange(9) >= torch.tensor([[0], [4], [8], [1], [0], [6]])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("eos", [None, [13], [13, 7, 22]])
def test_greedy(models: tuple[Decoder, Any], eos: list[int] | None, padded: bool) -> None:
    ours, theirs = models
    tokens, mask = prompts()
    settings = {} if eos is None else {"eos_token_id": eos}
    expected = theirs_written(theirs, tokens, mask if padded else None, do_sample=False, **settings)
    for static_cache in (False, True):
        found = ours.generate(
            tokens,
            NEW,
            attention_mask=mask if padded else None,
            temperature=0,
            eos_token_id=eos,
            static_cache=static_cache,
        )
        assert torch.equal(found, expected)
    assert len(expected[:, 9:].unique()) > 8
    assert eos is None or len(expected[:, -1].unique()) > 1  # some rows end, others do not


@pytest.mark.parametrize("eos", [None, [13], [13, 7]])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("n_beams", [2, 5])
def test_beams(models: tuple[Decoder, Any], n_beams: int, length_penalty: float, eos: list[int] | None) -> None:
    ours, theirs = models
    tokens, mask = prompts()
    settings = {} if eos is None else {"eos_token_id": eos}
    expected = theirs_written(
        theirs, tokens, mask, do_sample=False, num_beams=n_beams, length_penalty=length_penalty, **settings
    )
    found = ours.beam_search(tokens, NEW, n_beams, attention_mask=mask, length_penalty=length_penalty, eos_token_id=eos)
    assert torch.equal(found, expected)
    greedy = ours.generate(tokens, NEW, attention_mask=mask, temperature=0, eos_token_id=eos)
    assert not torch.equal(found, greedy)


@pytest.mark.parametrize("penalty", [1.4, 0.7])
def test_repetition_penalty(models: tuple[Decoder, Any], penalty: float) -> None:
    ours, theirs = models
    tokens, _ = prompts()
    expected = theirs_written(theirs, tokens, do_sample=False, repetition_penalty=penalty)
    assert torch.equal(ours.generate(tokens, NEW, temperature=0, repetition_penalty=penalty), expected)
    assert not torch.equal(ours.generate(tokens, NEW, temperature=0), expected)
    expected = theirs_written(theirs, tokens, do_sample=False, repetition_penalty=penalty, num_beams=3)
    assert torch.equal(ours.beam_search(tokens, NEW, 3, repetition_penalty=penalty), expected)


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
