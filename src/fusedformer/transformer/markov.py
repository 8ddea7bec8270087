"""Markov models: the next token from the last few alone, by counting. The floor that every language model is held to.

Dimensions: N tokens of a text, V vocabulary, k length of a context, B batch.
A context of k tokens that was followed by T tokens, D of them different and c of them w, predicts w with probability

    p_k(w) = (c + D p_(k-1)(w)) / (T + D),    p_(-1)(w) = 1 / V

and a context that was never seen says what the shorter one says: interpolated back-off. Or, with additive smoothing,
the longest context that was seen speaks alone: p(w) = (c + alpha) / (T + alpha V).
Source: Witten and Bell 1991, "The zero-frequency problem" (IEEE Transactions on Information Theory 37.4), method C, in
the recursive form of Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
section 2.4; additive smoothing: Lidstone 1920, their section 2.1.
Cost: one sort of N numbers for each k; memory, at most 3 N numbers for each.
"""

import math

import torch
from torch import Tensor

from fusedformer.transformer.checks import check_integer, check_number
from fusedformer.transformer.sampling import Generators, Sampler

LARGEST_MATRIX = 2**26  # elements: half a GiB


class MarkovModel:
    """The distribution of each token given the `order` tokens before it, counted in a text.

    Args:
        tokens: the text, int32 or int64, (N,), N above `order`, values below vocab_size, on any device.
        vocab_size: V.
        order: the length of the longest context; 0 looks at no token before.
        alpha: what additive smoothing adds to each count, above 0; None: interpolated back-off.

    Raises:
        ValueError: a shape, dtype, token or number is out of range.
    """

    def __init__(self, tokens: Tensor, vocab_size: int, order: int, *, alpha: float | None = None) -> None:
        check_integer("vocab_size", vocab_size, least=1)
        check_integer("order", order, least=0)
        if alpha is not None:
            check_number("alpha", alpha, 0, math.inf, above=True)
        self.vocab_size, self.order, self.alpha = vocab_size, order, alpha
        self.device = tokens.device if isinstance(tokens, Tensor) else None
        self._check("tokens", tokens, dim=1)
        if len(tokens) <= order:
            raise ValueError(f"a text of {len(tokens)} tokens has no token behind {order} others")
        self._count(tokens.long())

    def _count(self, tokens_N: Tensor) -> None:
        """Count the different sequences of k tokens, 0 to order + 1, in the order of their codes.

        The code of a sequence is the place of all of it but the last token, among those of k - 1 tokens, times V, plus
        the last token: below N V, however long it is.
        """
        self.codes, self.counts = [tokens_N.new_zeros(1)], [tokens_N.new_tensor([len(tokens_N)])]
        self.total: list[Tensor] = []  # T of the sequences of k tokens, 0 to order
        self.distinct: list[Tensor] = []  # D of these
        place_N = torch.zeros_like(tokens_N)  # of the k tokens before each token
        for k in range(self.order + 1):
            codes, place_N, counts = torch.unique(
                place_N * self.vocab_size + tokens_N[k:], return_inverse=True, return_counts=True
            )
            prefixes, n_prefixes = codes // self.vocab_size, len(self.codes[k])
            self.total.append(counts.new_zeros(n_prefixes).scatter_add_(0, prefixes, counts))
            self.distinct.append(prefixes.bincount(minlength=n_prefixes))
            self.codes.append(codes)
            self.counts.append(counts)
            place_N = place_N[:-1]  # no token is behind the last

    def probabilities(self, contexts: Tensor, mask: Tensor | None = None) -> Tensor:
        """The distributions of the tokens that follow.

        Args:
            contexts: int32 or int64, (B, S), S from 0 on: the last `order` tokens count.
            mask: bool, broadcastable to (B, V), True for a token that may follow; the others get 0, and these what
                they had, in proportion. None: all may.

        Returns:
            Tensor (B, V), float64; each row sums to 1.

        Raises:
            ValueError: a shape, dtype or token is wrong, or the mask leaves a row nothing.
        """
        self._check("contexts", contexts, dim=2)
        vocabulary_V = torch.arange(self.vocab_size, device=self.device)
        shape = (len(contexts), self.vocab_size)
        p_BV = torch.full(shape, 1 / self.vocab_size, dtype=torch.float64, device=self.device)
        for k in range(min(self.order, contexts.shape[1]) + 1):
            place_B1 = self._places(contexts[:, contexts.shape[1] - k :].long())[-1][:, :1]
            p_BV = self._back_off(k, place_B1, vocabulary_V, p_BV)
        return p_BV if mask is None else renormalised(p_BV, mask)

    def transition_matrix(self, mask: Tensor | None = None) -> Tensor:
        """Row i: the distribution of the token after context i, (V**order, V), float64.

        The context of row i is i in base V, its last token the last digit: with order 1 row i is for token i, and the
        row of a one-hot vector is its product with the matrix. `mask` is that of `probabilities`.

        Raises:
            ValueError: the matrix would have more than 2**26 elements, or the mask does not fit.
        """
        V = self.vocab_size
        if V ** (self.order + 1) > LARGEST_MATRIX:
            raise ValueError(
                f"a matrix of {V}**{self.order} rows and {V} columns has more than {LARGEST_MATRIX} elements"
            )
        rows = torch.arange(V**self.order, device=self.device).unsqueeze(1)
        digits = [V**place for place in range(self.order - 1, -1, -1)]
        return self.probabilities(rows // rows.new_tensor(digits) % V, mask)

    def loss(self, tokens: Tensor) -> float:
        """Mean cross-entropy, in nats per token, of tokens 1 to N - 1 of a text, each given those before it.

        Args:
            tokens: int32 or int64, (N,), N at least 2.

        Raises:
            ValueError: a shape, dtype or token is wrong.
        """
        self._check("tokens", tokens, dim=1)
        if len(tokens) < 2:
            raise ValueError(f"a loss needs at least 2 tokens, got {len(tokens)}")
        tokens_N = tokens.long()
        places = self._places(tokens_N.unsqueeze(0))
        p_N = torch.full((len(tokens) - 1,), 1 / self.vocab_size, dtype=torch.float64, device=self.device)
        for k in range(min(self.order, len(tokens) - 1) + 1):
            # Tokens before the k-th have no context of that length, and token 0 is not asked for.
            first = max(k, 1)
            place_N = places[k][0, first - k : len(tokens) - k]
            p_N[first - 1 :] = self._back_off(k, place_N, tokens_N[first:], p_N[first - 1 :])
        return -p_N.log().mean().item()

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: Generators = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Continue each row of `tokens`, (B, S), S from 0 on, by `max_new_tokens` tokens drawn from its distribution.

        The settings are those of `Decoder.generate`; `mask` is that of `probabilities`.

        Returns:
            Tensor (B, S + max_new_tokens) of tokens' dtype.

        Raises:
            ValueError: an argument is out of range, or the mask leaves a row nothing.
        """
        check_integer("max_new_tokens", max_new_tokens, least=0)
        sampler = Sampler(temperature, top_k, generator=generator)
        self._check("tokens", tokens, dim=2)
        for _ in range(max_new_tokens):
            context = tokens[:, max(tokens.shape[1] - self.order, 0) :]
            next_B = sampler(self.probabilities(context, mask).log())
            tokens = torch.cat([tokens, next_B.unsqueeze(1).to(tokens.dtype)], dim=1)
        return tokens

    def _places(self, tokens_BS: Tensor) -> list[Tensor]:
        """For each k, where the k tokens from each on, (B, S - k + 1), stand among those of the text; -1: nowhere."""
        places = [tokens_BS.new_zeros(len(tokens_BS), tokens_BS.shape[1] + 1)]
        for k in range(1, min(self.order, tokens_BS.shape[1]) + 1):
            places.append(self._find(k, places[-1][:, :-1], tokens_BS[:, k - 1 :]))
        return places

    def _find(self, k: int, prefixes: Tensor, tokens: Tensor) -> Tensor:
        """Where the sequences of k tokens with these prefixes and these last tokens stand; -1: nowhere."""
        codes = self.codes[k]
        wanted = prefixes * self.vocab_size + tokens
        places = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
        return places.where((codes[places] == wanted) & (prefixes >= 0), -1)

    def _back_off(self, k: int, contexts: Tensor, tokens: Tensor, shorter: Tensor) -> Tensor:
        """The probabilities of these tokens behind these contexts of k tokens, given those behind shorter ones."""
        place = self._find(k + 1, contexts, tokens)
        count = self.counts[k + 1][place].where(place >= 0, 0)
        total, distinct = self.total[k][contexts], self.distinct[k][contexts]
        if self.alpha is None:
            p = (count + distinct * shorter) / (total + distinct)
        else:
            p = (count + self.alpha) / (total + self.alpha * self.vocab_size)
        return p.where((contexts >= 0) & (total > 0), shorter)

    def _check(self, name: str, tokens: Tensor, *, dim: int) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int32, torch.int64) or tokens.dim() != dim:
            found = f"{tokens.dtype} of {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"{name} must be an int32 or int64 tensor with {dim} dimension(s), got {found}")
        if tokens.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, where the text was, got {tokens.device}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            found = f"from {int(tokens.min())} to {int(tokens.max())}"
            raise ValueError(f"{name} hold values {found}, outside a vocabulary of {self.vocab_size}")


def renormalised(p_BV: Tensor, mask: Tensor) -> Tensor:
    """The distributions of what a mask leaves; ValueError if it does not fit, or leaves a row nothing."""
    B, V = p_BV.shape
    fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape in ((V,), (1, V), (B, V))
    if not fits:
        found = f"{mask.dtype} of {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be bool and broadcast to ({B}, {V}), got {found}")
    if not mask.any(dim=-1).all():
        raise ValueError("mask has a row in which no token may follow")
    p_BV = p_BV.masked_fill(~mask, 0)
    return p_BV / p_BV.sum(dim=1, keepdim=True)
