"""Whisper's loop of decoding, on a tiny model: equal to teacher forcing, and nothing written that must not be."""

import re
from typing import Any

import pytest
import torch
from models import make_model
from torch import Tensor

from fusedformer import EncoderDecoder
from fusedformer.transformer.audio import MAX_SAMPLES, log_mel_spectrogram
from fusedformer.transformer.transcription import END, prompt_tokens, special_token, transcribe, transcribe_tokens

VOCAB, CONTEXT, PROMPT, END_TOKEN = 19, 12, [16, 17], 15


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    sizes = {"n_mels": 4, "max_source_len": 1500, "max_seq_len": CONTEXT, "vocab_size": VOCAB}
    return make_model("encoder_decoder", norm_position="pre", **sizes)


def sound() -> Tensor:
    return torch.sin(torch.arange(8000) / 5.0) * 0.3


def written(model: EncoderDecoder, **suppressed: Any) -> list[int]:
    return transcribe_tokens(model, PROMPT, END_TOKEN, sound(), **suppressed)


@torch.no_grad()
def test_each_token_is_the_most_probable_by_teacher_forcing(model: EncoderDecoder) -> None:
    tokens = written(model)
    memories = model.encode(log_mel_spectrogram(sound(), 4).unsqueeze(0))
    logits = model.decode(torch.tensor([[*PROMPT, *tokens]]), memories)[0, len(PROMPT) - 1 :, : END_TOKEN + 1]
    expected = logits.argmax(dim=-1).tolist()
    assert tokens == expected[: len(tokens)]
    assert len(PROMPT) + len(tokens) == CONTEXT or expected[len(tokens)] == END_TOKEN


def test_suppressed_tokens_are_not_written(model: EncoderDecoder) -> None:
    tokens = written(model)
    assert tokens
    assert tokens[0] not in written(model, suppress_tokens=[tokens[0]])
    assert written(model, begin_suppress_tokens=[tokens[0]])[0] != tokens[0]
    assert all(token < END_TOKEN for token in written(model, suppress_tokens=[END_TOKEN]))
    assert written(model, suppress_tokens=list(range(END_TOKEN))) == []


def test_the_model_keeps_its_mode(model: EncoderDecoder) -> None:
    model.train()
    written(model)
    assert model.training
    model.eval()


class Words:
    """A tokenizer of words, with Whisper's special tokens."""

    specials = (END, "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")

    def token_to_id(self, name: str) -> int | None:
        return 14 + self.specials.index(name) if name in self.specials else None

    def decode(self, tokens: list[int]) -> str:
        return " " + " ".join(f"w{token}" for token in tokens)


def test_transcribe(model: EncoderDecoder) -> None:
    tokenizer: Any = Words()
    assert prompt_tokens(tokenizer, "en") == [15, 16, 17, 18]
    tokens = transcribe_tokens(model, [15, 16, 17, 18], 14, sound())
    assert transcribe(model, tokenizer, sound()) == tokenizer.decode(tokens).strip()
    assert special_token(tokenizer, END) == 14
    with pytest.raises(ValueError, match=re.escape("the tokenizer has no <|xx|>")):
        transcribe(model, tokenizer, sound(), language="xx")


def test_bad_arguments(model: EncoderDecoder) -> None:
    with pytest.raises(ValueError, match="token 19 is outside a vocabulary of 19"):
        written(model, suppress_tokens=[19])
    with pytest.raises(ValueError, match=r"31.2 s of audio: Whisper reads 30 s at most"):
        transcribe_tokens(model, PROMPT, END_TOKEN, torch.zeros(MAX_SAMPLES + 20_000))
    with pytest.raises(ValueError, match="the model reads tokens, not audio: its configuration has n_mels 0"):
        transcribe_tokens(make_model("encoder_decoder"), PROMPT, END_TOKEN, sound())
