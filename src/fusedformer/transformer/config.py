"""The sizes and choices of a transformer: one frozen dataclass, checked as a whole. Published values: presets.py."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from fusedformer.kernels.attention.inputs import MAX_HEAD_DIM
from fusedformer.transformer.presets import PRESETS

Activation = Literal["gelu", "gelu_tanh", "relu", "geglu", "geglu_tanh", "swiglu"]
Norm = Literal["layer", "rms"]
NormPosition = Literal["pre", "post", "sandwich"]
Positions = Literal["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]
RotaryScaling = Literal["none", "linear", "llama3"]
Pooling = Literal["class", "mean"]

# A field's type: what a message calls it, and the exact types that its values may have.
KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    int: ("an integer", (int,)),
    int | None: ("an integer or None", (int, type(None))),
    float: ("a number", (int, float)),
    bool: ("True or False", (bool,)),
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a transformer, checked as a whole when it is made.

    Sizes are positive integers. A size that only some architectures have is 0 in the others: `vocab_size` and
    `max_seq_len` belong to the models of text, `image_size` to `n_classes` to the models of images.

    Raises:
        ValueError: if a value is impossible by itself or beside the others; the message names the values.
    """

    d_model: int  # width of the residual stream
    n_layers: int  # blocks; an encoder-decoder has this many on each side
    n_heads: int
    d_ff: int  # hidden width of the feed-forward network
    n_kv_heads: int | None = None  # key and value heads, each shared by n_heads / n_kv_heads query heads; None: n_heads

    vocab_size: int = 0
    max_seq_len: int = 0  # the longest sequence, in tokens; of an encoder-decoder, source and target each
    type_vocab_size: int = 0  # token types, called segments in BERT

    image_size: int = 0  # height and width of the square image that the position table is for, in pixels
    patch_size: int = 0  # height and width of one patch, in pixels
    n_channels: int = 0
    n_classes: int = 0  # 0: no head, the pooled vector comes out
    n_registers: int = 0  # learned tokens that stand for no patch (Darcet et al. 2024, arXiv:2309.16588)
    antialias_positions: bool = False  # for smaller images, positions are averages, not samples

    n_mels: int = 0  # of an encoder-decoder that hears: channels of the spectrogram
    max_source_len: int = 0  # and the longest source behind the convolutions, two frames of the spectrogram each

    positions: Positions = "learned"
    rotary_dim: int = 0  # dimensions of each head that rotate; 0: all
    rotary_base: float = 10000.0
    rotary_interleaved: bool = False  # pairs are dimensions 2i and 2i + 1; else i and rotary_dim / 2 + i
    rotary_scaling: RotaryScaling = "none"  # "linear": by rotary_factor; "llama3": the slow ones alone
    rotary_factor: float = 1.0  # what frequencies are divided by
    rotary_low_freq_factor: float = 1.0  # "llama3": up to so many turns in rotary_original_len, a frequency is slow,
    rotary_high_freq_factor: float = 4.0  # and from so many on it is fast and stays; a blend between
    rotary_original_len: int = 0
    relative_buckets: int = 32  # distances that have a bias of their own; of both directions in an encoder
    relative_max_distance: int = 128  # from here on, all distances share one

    activation: Activation = "gelu"  # the last three are gated: their feed-forward has a matrix more
    norm: Norm = "layer"
    norm_position: NormPosition = "pre"  # x + f(norm(x)); "post": norm(x + f(x)); "sandwich": x + norm(f(norm(x)))
    norm_eps: float = 1e-5
    bias: bool = True  # in every linear layer and LayerNorm
    dropout: float = 0.0  # probability, after the embeddings and after each sublayer
    stochastic_depth: float = 0.0  # probability that the last block's sublayers are skipped; linear from 0 at the first
    layer_scale: float = 0.0  # initial factor of each feature that a sublayer adds; 0: there is none
    activation_checkpointing: bool = False  # in training, a block's backward computes its forward again
    tie_embeddings: bool = True  # the output head is the token embedding matrix
    scale_tied_head: bool = False  # what the head reads is divided by sqrt(d_model), as T5 with tied embeddings
    scale_attention: bool = True  # scores are divided by sqrt(head_dim); T5's are not
    pooling: Pooling = "class"  # a sequence becomes one vector: its first position, or the mean of its positions
    decoder_start_token_id: int = 0  # what an encoder-decoder's target is shifted right behind

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_together()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "TransformerConfig":
        """The preset called `name`, with `overrides` in place of its values and checked together with them.

        Raises:
            ValueError: if there is no such preset or field, or the values do not fit together.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
        return cls.from_fields({**PRESETS[name], **overrides})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "TransformerConfig":
        """The configuration with these fields, such as `dataclasses.asdict` gives and a checkpoint holds.

        Raises:
            ValueError: if a field is unknown or missing, or the values do not fit together.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"a configuration is a mapping of fields to values, got {fields!r}")
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise ValueError(f"unknown configuration field {', '.join(unknown)}: choose from {', '.join(known)}")
        required = [name for name, field in known.items() if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in fields]
        if missing:
            raise ValueError(f"missing configuration field {', '.join(missing)}")
        return cls(**fields)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network has a gate: three matrices instead of two."""
        return self.activation in ("geglu", "geglu_tanh", "swiglu")

    def require(self, model: str, sizes: tuple[str, ...]) -> None:
        """Raise ValueError if `model` cannot be built because one of `sizes`, which it needs, is 0."""
        absent = [name for name in sizes if getattr(self, name) == 0]
        if absent:
            raise ValueError(f"{model} needs {', '.join(f'{name} >= 1' for name in absent)}, the configuration has 0")

    def _check_fields(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal:
                choices = get_args(field.type)
                if value not in choices:
                    raise ValueError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")
                continue
            kind, types = KINDS[field.type]
            if type(value) not in types:  # not isinstance: True is an int, and n_layers=True a slip of the pen
                raise ValueError(f"{field.name} must be {kind}, got {value!r}")
            least = 1 if field.default is dataclasses.MISSING else 0
            if field.type is int and value < least:
                raise ValueError(f"{field.name} must be at least {least}, got {value}")

    def _check_together(self) -> None:
        self._check_ranges()
        self._check_heads()
        if self.positions == "rotary":
            self._check_rotary()
        if self.positions == "relative":
            self._check_relative()
        if self.patch_size and self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if bool(self.n_mels) != bool(self.max_source_len):
            raise ValueError(f"n_mels {self.n_mels} and max_source_len {self.max_source_len}: both or neither are 0")
        if self.n_mels and (self.d_model < 4 or self.d_model % 2):  # sines and cosines, of two wavelengths at least
            raise ValueError(f"d_model {self.d_model} must be even and at least 4 with n_mels {self.n_mels}")
        start = self.decoder_start_token_id
        if self.vocab_size and start >= self.vocab_size:
            raise ValueError(f"decoder_start_token_id {start} is outside a vocabulary of {self.vocab_size}")
        if self.scale_tied_head and not self.tie_embeddings:
            raise ValueError("scale_tied_head is True and tie_embeddings False: no head is tied")

    def _check_ranges(self) -> None:
        for name in ("dropout", "stochastic_depth"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0.0 < self.norm_eps < 1.0:
            raise ValueError(f"norm_eps must be in (0, 1), got {self.norm_eps}")
        if not 0.0 <= self.layer_scale < math.inf:
            raise ValueError(f"layer_scale must be a finite number from 0 on, got {self.layer_scale}")

    def _check_heads(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim > MAX_HEAD_DIM:
            sizes = f"d_model {self.d_model} and n_heads {self.n_heads}"
            raise ValueError(
                f"{sizes} make heads of {self.head_dim} dimensions: attention computes {MAX_HEAD_DIM} at most"
            )
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")

    def _check_rotary(self) -> None:
        dim = self.rotary_dim or self.head_dim
        if dim % 2 or dim > self.head_dim:
            raise ValueError(f"rotary_dim {dim} must be even and at most the head dimension {self.head_dim}")
        if not 1.0 < self.rotary_base < math.inf:
            raise ValueError(f"rotary_base must be a finite number above 1, got {self.rotary_base}")
        if not 0.0 < self.rotary_factor < math.inf:
            raise ValueError(f"rotary_factor must be a finite number above 0, got {self.rotary_factor}")
        if self.rotary_scaling != "llama3":
            return
        low, high = self.rotary_low_freq_factor, self.rotary_high_freq_factor
        if not 0.0 < low < high < math.inf:
            raise ValueError(f"rotary_low_freq_factor {low} must be above 0 and below rotary_high_freq_factor {high}")
        if not self.rotary_original_len:
            raise ValueError("rotary_scaling 'llama3' needs rotary_original_len >= 1, the configuration has 0")

    def _check_relative(self) -> None:
        buckets, distance = self.relative_buckets, self.relative_max_distance
        if buckets < 4 or buckets % 4:  # halves for the two directions, and of each a half for single distances
            raise ValueError(f"relative_buckets must be a positive multiple of 4, got {buckets}")
        if distance <= buckets // 2:
            raise ValueError(f"relative_max_distance {distance} must be above half of relative_buckets {buckets}")
