"""Decoding token by token: what the models that write tokens share, and the loop that asks for the next one.

Dimensions: B batch, S sequence, W tokens written, V vocabulary.
`sampling.py` chooses a token, `beam_search.py` searches for a sequence, `cache.py` keeps what has been computed.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusedformer.transformer.beam_search import beam_search
from fusedformer.transformer.cache import DecodingState
from fusedformer.transformer.checks import check_eos, check_integer, check_number
from fusedformer.transformer.model import LanguageModel
from fusedformer.transformer.sampling import Generators, Sampler, seen_tokens


class GenerativeModel(LanguageModel, ABC):
    """A language model that continues sequences of its own, or writes new ones from a source."""

    returns_prompt: ClassVar[bool]  # what is written continues the tokens given

    @abstractmethod
    def begin(
        self, tokens: Tensor, max_new_tokens: int, attention_mask: Tensor | None, *, static_cache: bool
    ) -> tuple[Tensor, DecodingState]:
        """The first tokens to `advance` by, (B, S), and a state that has room for `max_new_tokens` behind them."""

    @abstractmethod
    def advance(self, tokens_BS: Tensor, state: DecodingState) -> Tensor:
        """Logits (B, V) of the token after these, which continue the sequences of `state` and become part of it."""

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        attention_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        generator: Generators = None,
        eos_token_id: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        static_cache: bool = False,
        on_tokens: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Write `max_new_tokens` tokens behind each sequence, one at a time, with dropout off.

        A decoder continues `tokens`; an encoder-decoder reads them and writes a target.

        Args:
            tokens: prompts or sources, int32 or int64, (B, S), S at least 1.
            max_new_tokens: how many tokens to write. They must fit into max_seq_len, behind the prompt if there is one.
            attention_mask: bool, (B, S), True for a real token and False for padding; None: no padding. Prompts of
                different lengths are padded on the left: the last column holds the token to continue.
            temperature: logits are divided by it; 0 takes the most probable token each time (greedy).
            top_k: draw among the k most probable tokens only.
            top_p: draw among the fewest most probable tokens that together have at least this probability.
            min_p: draw among the tokens that are at least this many times as probable as the most probable one.
            repetition_penalty: above 1, tokens of the prompt and tokens written become less probable; see `Sampler`.
            generator: the source of randomness, on the model's device; or one for each row, so that a row does not
                depend on the rows beside it. None: PyTorch's own.
            eos_token_id: the token, or tokens, that end a row; the first fills the rest of it. None: no row ends early.
            stop_strings: a row also ends where the text written in it contains one of these; its rest is filled alike.
            decode: the text of a row's tokens, for `stop_strings`, such as the `decode` of its tokenizer.
            static_cache: keep keys and values in buffers of fixed size: `advance` can then be compiled or recorded as
                a CUDA graph, since every step after the first runs the same kernels on the same memory.
            on_tokens: called with the tokens of each step, (B,), as soon as they are chosen (streaming).

        Returns:
            Tensor of tokens' dtype: prompts and continuations, (B, S + max_new_tokens), of a decoder; targets without
            their start token, (B, max_new_tokens), of an encoder-decoder.

        Raises:
            ValueError: an argument is out of range, padding stands last in a prompt, or the context overflows.
        """
        sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, generator)
        ends = Ends(check_eos(eos_token_id, self.config.vocab_size), stop_strings, decode)
        with evaluating(self):
            start, state = self.begin(tokens, max_new_tokens, attention_mask, static_cache=static_cache)
            seen_BV = self._seen(start, attention_mask, repetition_penalty)
            written = start.new_full((len(start), max_new_tokens), ends.fill)
            new_BS, running_B = start, torch.ones(len(start), dtype=torch.bool, device=start.device)
            for step in range(max_new_tokens):
                next_B = sampler(self.advance(new_BS, state), seen_BV).to(start.dtype)
                written[:, step] = next_B = next_B.where(running_B, ends.fill) if ends.token_ids else next_B
                if on_tokens is not None:
                    on_tokens(next_B)
                if ends.token_ids:
                    running_B = running_B & ~ends.reached(written[:, : step + 1], running_B)
                    if not running_B.any():
                        break
                new_BS = next_B.unsqueeze(1)
                seen_BV = seen_BV if seen_BV is None else seen_BV.scatter(1, new_BS.long(), True)
        return torch.cat([tokens, written], dim=1) if self.returns_prompt else written

    @torch.no_grad()
    def beam_search(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        n_beams: int,
        *,
        attention_mask: Tensor | None = None,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        static_cache: bool = False,
    ) -> Tensor:
        """Write the most probable tokens behind each sequence that a search finds; token for token as Hugging Face's.

        Args:
            tokens: as in `generate`.
            max_new_tokens: as in `generate`.
            n_beams: how many continuations of each sequence are followed at a time.
            attention_mask: as in `generate`.
            length_penalty: continuations are compared by log-probability / length**length_penalty: 0 prefers short
                ones, more than 1 long ones.
            repetition_penalty: as in `generate`, on log-probabilities.
            eos_token_id: the token, or tokens, that end a continuation; the first fills the rest of its row.
            static_cache: as in `generate`.

        Returns:
            Tensor as `generate` returns.

        Raises:
            ValueError: an argument is out of range, padding stands last in a prompt, or the context overflows.
        """
        check_integer("n_beams", n_beams, least=1)
        check_number("length_penalty", length_penalty, -math.inf, math.inf)
        check_number("repetition_penalty", repetition_penalty, 0, math.inf, above=True)
        eos_token_ids = check_eos(eos_token_id, self.config.vocab_size)
        with evaluating(self):
            start, state = self.begin(tokens, max_new_tokens, attention_mask, static_cache=static_cache)
            seen_BV = self._seen(start, attention_mask, repetition_penalty)
            written = beam_search(
                self.advance, start, state, max_new_tokens, n_beams=n_beams, length_penalty=length_penalty,
                repetition_penalty=repetition_penalty, seen_BV=seen_BV, eos_token_ids=eos_token_ids,
            )  # fmt: skip
        return torch.cat([tokens, written], dim=1) if self.returns_prompt else written

    def _seen(self, start: Tensor, attention_mask: Tensor | None, repetition_penalty: float) -> Tensor | None:
        """The tokens that are penalised from the start, bool, (B, V); None where nothing is."""
        if repetition_penalty == 1:
            return None
        return seen_tokens(start, self.config.vocab_size, attention_mask if self.returns_prompt else None)


class Ends:
    """What ends a row: tokens, and strings in the text that is written."""

    def __init__(
        self,
        token_ids: tuple[int, ...],
        strings: str | Sequence[str],
        decode: Callable[[list[int]], str] | None,
    ) -> None:
        self.token_ids, self.decode = token_ids, decode
        self.fill = token_ids[0] if token_ids else 0
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        if not all(isinstance(string, str) and string for string in self.strings):
            raise ValueError(f"stop_strings must be strings that are not empty, got {strings!r}")
        if self.strings and (decode is None or not token_ids):
            raise ValueError("stop_strings need decode, to find them, and eos_token_id, to fill the rest of a row")

    def reached(self, written_BW: Tensor, running_B: Tensor) -> Tensor:
        """Which rows their last token ends, bool, (B,); of rows that ended before, anything."""
        last_B = written_BW[:, -1]
        ended_B = last_B == self.token_ids[0]
        for token in self.token_ids[1:]:
            ended_B = ended_B | (last_B == token)
        if self.strings:
            ended_B = ended_B | self._has_string(written_BW, running_B)
        return ended_B

    def _has_string(self, written_BW: Tensor, running_B: Tensor) -> Tensor:
        assert self.decode is not None
        texts = [self.decode(row) if on else "" for row, on in zip(written_BW.tolist(), running_B.tolist())]
        return running_B.new_tensor([any(string in text for string in self.strings) for text in texts])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module is back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
