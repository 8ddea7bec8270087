"""What Whisper hears, as text: its special tokens, and greedy decoding without timestamps.

Dimensions: N samples, M mel bands, V vocabulary.
Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv:2212.04356), section
2.3 and figure 1.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusedformer.transformer.audio import log_mel_spectrogram
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.generation import evaluating

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, TASK, NO_TIMESTAMPS, END = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>"


def transcribe(
    model: EncoderDecoder,
    tokenizer: "Tokenizer",
    samples_N: Tensor,
    *,
    language: str = "en",
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
) -> str:
    """The words spoken in up to 30 s of audio.

    Args:
        model: a Whisper, from `from_pretrained`.
        tokenizer: its own, from `load_tokenizer`.
        samples_N: at 16 kHz, floating point, (N,), in [-1, 1], such as `read_wav` gives.
        language: its code, such as "en" or "zh".
        suppress_tokens: tokens that are never written, such as those for music; `read_weights` gives the model's own.
        begin_suppress_tokens: tokens that are not written first.

    Raises:
        ValueError: the model is no Whisper, its tokenizer has no such language, a token is outside the vocabulary, or
            there are more than 30 s.
    """
    tokens = transcribe_tokens(
        model,
        prompt_tokens(tokenizer, language),
        special_token(tokenizer, END),
        samples_N,
        suppress_tokens=suppress_tokens,
        begin_suppress_tokens=begin_suppress_tokens,
    )
    return str(tokenizer.decode(tokens)).strip()


def prompt_tokens(tokenizer: "Tokenizer", language: str) -> list[int]:
    """The tokens that ask for a transcript in this language without timestamps."""
    return [special_token(tokenizer, name) for name in (START, f"<|{language}|>", TASK, NO_TIMESTAMPS)]


def special_token(tokenizer: "Tokenizer", name: str) -> int:
    token = tokenizer.token_to_id(name)
    if token is None:
        raise ValueError(f"the tokenizer has no {name}: it is not that of a multilingual Whisper, or not its language")
    return int(token)


@torch.no_grad()
def transcribe_tokens(
    model: EncoderDecoder,
    prompt: Sequence[int],
    end: int,
    samples_N: Tensor,
    *,
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
) -> list[int]:
    """The tokens that follow the prompt, up to `end`, each the most probable one. See `transcribe`.

    Of the tokens behind `end`, which are special or timestamps, none is written.
    """
    config = model.config
    if not config.n_mels:
        raise ValueError("the model reads tokens, not audio: its configuration has n_mels 0")
    suppressed_V = torch.zeros(config.vocab_size, dtype=torch.bool)
    suppressed_V[[check_token(token, config.vocab_size) for token in suppress_tokens]] = True
    suppressed_V[check_token(end, config.vocab_size) + 1 :] = True
    at_first_V = suppressed_V.clone()
    at_first_V[[check_token(token, config.vocab_size) for token in begin_suppress_tokens]] = True
    weight = model.token_embedding.weight
    mels_1MT = log_mel_spectrogram(samples_N, config.n_mels).unsqueeze(0).to(weight)
    new_1S = torch.tensor([list(prompt)], device=weight.device)
    banned_V, tokens = at_first_V.to(weight.device), list[int]()
    with evaluating(model):
        memories = model.encode(mels_1MT)
        caches = model.decoder.new_caches(config.max_seq_len)
        while len(prompt) + len(tokens) < config.max_seq_len:
            logits_V = model.decode(new_1S, memories, caches)[0, -1]
            token = int(logits_V.masked_fill(banned_V, -torch.inf).argmax())
            if token == end:
                break
            tokens.append(token)
            new_1S, banned_V = new_1S.new_tensor([[token]]), suppressed_V.to(weight.device)
    return tokens


def check_token(token: int, vocab_size: int) -> int:
    if not 0 <= token < vocab_size:
        raise ValueError(f"token {token} is outside a vocabulary of {vocab_size}")
    return token
