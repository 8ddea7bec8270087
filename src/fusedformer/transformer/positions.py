"""How a transformer knows where a token stands: one class for each kind of positions.

    kind         what it changes                                          source
    learned      a vector of a table is added to each token               Radford et al. 2018 (GPT)
    sinusoidal   a fixed vector of sines is added to each token           Vaswani et al. 2017, section 3.5
    rotary       pairs of features of queries and keys are turned         Su et al. 2021 (arXiv:2104.09864)
    alibi        scores fall linearly with the distance                   Press et al. 2022 (arXiv:2108.12409)
    relative     scores get a learned bias for a bucket of distances      Raffel et al. 2020 (T5, arXiv:1910.10683)

The first two act where tokens are embedded, the others in every self-attention of a stack.
Dimensions: B batch, S new positions, T positions attended to, H heads, D head width, R rotating features, E d_model.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer.checks import check_cu_seqlens, check_mask
from fusedformer.transformer.config import TransformerConfig


class Placement(NamedTuple):
    """Where the tokens of a batch stand: their positions, which of them are real, where one sequence ends."""

    positions: Tensor  # int64, of all positions attended to: (T,); under a padding mask or packed (B, T)
    n_cached: int = 0  # how many of these came before and sit in a cache
    mask: Tensor | None = None  # bool, (B, T), True for a real token; or (B, S, T), True where attention may look
    cu_seqlens: Tensor | None = None  # int32: where each packed sequence starts, then the number of tokens

    @property
    def new_positions(self) -> Tensor:
        """Those that are not in a cache: (S,) or (B, S)."""
        return self.positions[..., self.n_cached :]

    @property
    def key_mask(self) -> Tensor | None:
        """The mask as attention broadcasts it, (B, 1, 1 or S, T)."""
        if self.mask is None:
            return None
        return self.mask[:, None, None, :] if self.mask.dim() == 2 else self.mask[:, None]


def place(x_BSE: Tensor, mask: Tensor | None, max_seq_len: int, n_cached: int = 0) -> Placement:
    """Positions of these tokens behind `n_cached` ones that sit in a cache.

    With a padding mask (B, T) for both, positions count real tokens alone: where padding stands changes nothing. With a
    mask (B, S, T) of what each position may attend to, they count all.

    Raises:
        ValueError: if the mask does not fit, or the sequence is longer than `max_seq_len`.
    """
    B, S = x_BSE.shape[:2]
    end = n_cached + S
    if mask is not None:
        shape = (B, S, end) if isinstance(mask, Tensor) and mask.dim() == 3 else (B, end)
        check_mask("attention_mask", mask, shape, x_BSE.device)
    if end > max_seq_len:
        raise ValueError(f"a sequence of {end} positions is longer than max_seq_len {max_seq_len}")
    if mask is not None and mask.dim() == 2:
        return Placement((mask.cumsum(dim=1) - 1).clamp(min=0), n_cached, mask)
    return Placement(torch.arange(end, device=x_BSE.device), n_cached, mask)


def place_packed(x_1NE: Tensor, cu_seqlens: Tensor, max_seq_len: int) -> Placement:
    """Positions of packed sequences, one behind the other in a batch of one, each counted from 0.

    Raises:
        ValueError: if `cu_seqlens` does not fit, or a sequence is longer than `max_seq_len`.
    """
    check_cu_seqlens(cu_seqlens, x_1NE.shape[1], max_seq_len, x_1NE.device)
    n_tokens, starts = x_1NE.shape[1], cu_seqlens[:-1].long()
    token = torch.arange(n_tokens, device=x_1NE.device)
    start_of_token = starts.repeat_interleave(cu_seqlens.diff(), output_size=n_tokens)
    return Placement((token - start_of_token).unsqueeze(0), cu_seqlens=cu_seqlens)


class LearnedPositions(nn.Embedding):
    """A learned vector per position, added to the sequence."""

    def forward(self, x_BSE: Tensor, placement: Placement) -> Tensor:  # type: ignore[override]
        return x_BSE + super().forward(placement.new_positions)


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position, added to the sequence: no parameters."""

    def forward(self, x_BSE: Tensor, placement: Placement) -> Tensor:
        angles = outer(placement.new_positions, frequencies(x_BSE.shape[-1], 10000.0, x_BSE))
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., : x_BSE.shape[-1]]
        return x_BSE + waves.to(x_BSE.dtype)


def make_position_embedding(config: TransformerConfig) -> nn.Module | None:
    """What is added to the token embeddings for their positions, if anything is."""
    if config.positions == "learned":
        return LearnedPositions(config.max_seq_len, config.d_model)
    return SinusoidalPositions() if config.positions == "sinusoidal" else None


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which pairs of features turn."""

    cos: Tensor  # (1 or B, S, 1, R / 2)
    sin: Tensor
    interleaved: bool

    def turn(self, x_BSHD: Tensor) -> Tensor:
        """Turn the first R features of every head; the others stay."""
        n_turning = 2 * self.cos.shape[-1]
        turning, rest = x_BSHD[..., :n_turning], x_BSHD[..., n_turning:]
        if self.interleaved:
            first, second = turning.unflatten(-1, (-1, 2)).unbind(-1)
        else:
            first, second = turning.chunk(2, dim=-1)
        turned = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        both = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        both = both.to(x_BSHD.dtype)
        return torch.cat([both, rest], dim=-1) if rest.shape[-1] else both


class Context(NamedTuple):
    """What the self-attention of every block of a stack is told beside the sequence itself."""

    rotation: Rotation | None = None
    settings: Mapping[str, Tensor | None] = MappingProxyType({})  # further arguments of `attention`


class Rotary(nn.Module):
    """Rotary positions: feature pair i of a query or key at position p turns by the angle p * frequency i.

    Frequencies: base^(-2i / R). "linear" scaling divides all of them by a factor (Chen et al. 2023, arXiv:2306.15595);
    "llama3" only those that turn few times in the length that the model was trained on before (Grattafiori et al. 2024,
    arXiv:2407.21783). They are computed in each forward pass, in float32: a buffer would be rounded by `model.half()`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x_BSE: Tensor, placement: Placement) -> Rotation:
        config = self.config
        frequency = frequencies(config.rotary_dim or config.head_dim, config.rotary_base, x_BSE)
        if config.rotary_scaling != "none":
            slow = frequency / config.rotary_factor
            frequency = slow if config.rotary_scaling == "linear" else slow.lerp(frequency, self.speed(frequency))
        angles = outer(placement.new_positions, frequency)
        angles = angles.unsqueeze(-2) if angles.dim() == 3 else angles[None, :, None]
        return Rotation(angles.cos(), angles.sin(), config.rotary_interleaved)

    def speed(self, frequency: Tensor) -> Tensor:
        """From 0 for a frequency that is slow to 1 for one that is fast, by its turns in the original length."""
        low, high = self.config.rotary_low_freq_factor, self.config.rotary_high_freq_factor
        turns = self.config.rotary_original_len / (2 * math.pi) * frequency
        return ((turns - low) / (high - low)).clamp(0, 1)


class Alibi(nn.Module):
    """Attention with linear biases: head h subtracts slope h times the distance from the score. No parameters."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads

    def forward(self, x_BSE: Tensor, placement: Placement) -> dict[str, Tensor]:
        slopes = alibi_slopes(self.n_heads, x_BSE)
        if placement.mask is None:
            return {"alibi_slopes": slopes}  # no table of distances
        distance_B1ST = distances(placement).abs().unsqueeze(1)
        return {"bias": -slopes[:, None, None] * distance_B1ST}


class RelativeBias(nn.Embedding):
    """T5's positions: each head adds a learned number to the score for the bucket that the distance falls into.

    Half of the buckets are single distances; the others grow logarithmically up to a largest distance. Without
    `causal`, the two directions have half of the buckets each.
    """

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config.relative_buckets, config.n_heads)
        self.max_distance, self.causal = config.relative_max_distance, causal

    def forward(self, x_BSE: Tensor, placement: Placement) -> dict[str, Tensor]:  # type: ignore[override]
        if placement.cu_seqlens is not None:
            raise ValueError("packed sequences cannot have relative positions: attention takes no bias for them")
        bias_BSTH = super().forward(self.bucket(distances(placement)))
        return {"bias": bias_BSTH.permute(0, 3, 1, 2)}

    def bucket(self, ahead: Tensor) -> Tensor:
        """The bucket of keys that stand so many positions ahead of their query (negative: behind)."""
        n_buckets = self.num_embeddings if self.causal else self.num_embeddings // 2
        distance = (-ahead).clamp(min=0) if self.causal else ahead.abs()
        n_single = n_buckets // 2
        octaves = (distance.clamp(min=1).float() / n_single).log() / math.log(self.max_distance / n_single)
        far = (n_single + (octaves * (n_buckets - n_single)).long()).clamp(max=n_buckets - 1)
        bucket = torch.where(distance < n_single, distance, far)
        return bucket if self.causal else bucket + n_buckets * (ahead > 0)


class AttentionPositions(nn.Module):
    """What a stack's self-attention is told of positions, masks and packing, once for all of its blocks."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.scores: Alibi | RelativeBias | None = None
        if config.positions == "alibi":
            self.scores = Alibi(config)
        elif config.positions == "relative":
            self.scores = RelativeBias(config, causal=causal)

    def forward(self, x_BSE: Tensor, placement: Placement) -> Context:
        settings: dict[str, Tensor | None] = {} if self.scores is None else self.scores(x_BSE, placement)
        if placement.cu_seqlens is not None:
            settings |= {"cu_seqlens_q": placement.cu_seqlens, "cu_seqlens_k": placement.cu_seqlens}
        elif placement.mask is not None:
            settings |= {"mask": placement.key_mask}
        rotation = None if self.rotary is None else self.rotary(x_BSE, placement)
        return Context(rotation, settings)


def distances(placement: Placement) -> Tensor:
    """How far each key stands ahead of each query: (1 or B, S, T)."""
    ahead = placement.positions[..., None, :] - placement.new_positions[..., :, None]
    return ahead if ahead.dim() == 3 else ahead.unsqueeze(0)


def alibi_slopes(n_heads: int, like: Tensor) -> Tensor:
    """2^(-8 / n), 2^(-16 / n), ..., on like's device, for n heads; where n is no power of 2, those of the power below,
    then every second one of the power above. Made there: nothing is copied from the host.
    """
    n = 2 ** int(math.log2(n_heads))
    count = torch.arange(1, n_heads + 1, dtype=accumulate_dtype(like.dtype), device=like.device)
    exponents = torch.where(count <= n, count * (8 / n), (2 * (count - n) - 1) * (4 / n))
    return torch.exp2(-exponents)


def frequencies(n_features: int, base: float, like: Tensor) -> Tensor:
    """base^(-2i / n_features) for each pair of features, an odd last one too, on like's device."""
    dtype = accumulate_dtype(like.dtype)
    even = torch.arange(0, n_features, 2, dtype=dtype, device=like.device)
    return base ** (-even / n_features)


def outer(positions: Tensor, frequency: Tensor) -> Tensor:
    """Angles (*positions.shape, len(frequency))."""
    return positions.unsqueeze(-1) * frequency


def audio_positions(length: int, like_BSE: Tensor) -> Tensor:
    """Whisper's fixed positions (length, E): sines, then cosines, of wavelengths up to 10,000 times the shortest."""
    half = like_BSE.shape[-1] // 2
    step = torch.arange(half, dtype=torch.float32, device=like_BSE.device)
    angles = outer(torch.arange(length, device=like_BSE.device), torch.exp(-math.log(10000.0) / (half - 1) * step))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like_BSE.dtype)
