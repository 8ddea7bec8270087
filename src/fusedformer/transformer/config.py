"""The sizes and choices of a transformer: one frozen dataclass, and named presets of published models.

Every number of a preset comes from the source named beside it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from fusedformer.kernels.attention.inputs import MAX_HEAD_DIM

Activation = Literal["gelu", "gelu_tanh", "relu"]
NormPosition = Literal["pre", "post"]
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
    max_seq_len: int = 0  # positions in the learned position table: the longest sequence, in tokens
    type_vocab_size: int = 0  # token types, called segments in BERT

    image_size: int = 0  # height and width of the square input, in pixels
    patch_size: int = 0  # height and width of one patch, in pixels
    n_channels: int = 0
    n_classes: int = 0

    activation: Activation = "gelu"
    norm_position: NormPosition = "pre"  # "pre": x + f(norm(x)); "post": norm(x + f(x))
    norm_eps: float = 1e-5
    bias: bool = True  # in every linear layer and norm
    dropout: float = 0.0  # probability, after the embeddings and after each sublayer
    tie_embeddings: bool = True  # the output head is the token embedding matrix
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
        return cls.from_fields({**dataclasses.asdict(PRESETS[name]), **overrides})

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
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0.0 < self.norm_eps < 1.0:
            raise ValueError(f"norm_eps must be in (0, 1), got {self.norm_eps}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim > MAX_HEAD_DIM:
            sizes = f"d_model {self.d_model} and n_heads {self.n_heads}"
            raise ValueError(
                f"{sizes} make heads of {self.head_dim} dimensions: attention computes {MAX_HEAD_DIM} at most"
            )
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.patch_size and self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        start = self.decoder_start_token_id
        if self.vocab_size and start >= self.vocab_size:
            raise ValueError(f"decoder_start_token_id {start} is outside a vocabulary of {self.vocab_size}")


# fmt: off
PRESETS = {
    # The config.json published with sentence-transformers/all-MiniLM-L6-v2: every second layer of the 12-layer student
    # of Wang et al. 2020, "MiniLM" (arXiv:2002.10957), in BERT's architecture.
    "minilm-l6": TransformerConfig(
        vocab_size=30522, max_seq_len=512, type_vocab_size=2, d_model=384, n_layers=6, n_heads=12, d_ff=1536,
        activation="gelu", norm_position="post", norm_eps=1e-12, dropout=0.1, pooling="mean",
    ),
    # Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 and table 2 (vocabulary,
    # context, layers, width); heads, norm_eps and the tanh form of GELU from the hparams.json and code they released.
    "gpt2": TransformerConfig(
        vocab_size=50257, max_seq_len=1024, d_model=768, n_layers=12, n_heads=12, d_ff=3072,
        activation="gelu_tanh", norm_position="pre", norm_eps=1e-5, dropout=0.1,
    ),
    # Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929), table 1, at 224 pixels with the
    # 1,000 ImageNet classes; dropout from its table 3, norm_eps from the code they released.
    "vit-b/16": TransformerConfig(
        image_size=224, patch_size=16, n_channels=3, n_classes=1000, d_model=768, n_layers=12, n_heads=12, d_ff=3072,
        activation="gelu", norm_position="pre", norm_eps=1e-6, dropout=0.1,
    ),
    # Ours, for examples/train_decoder.py: nanoGPT's published shape for training on a CPU (4 layers, d 128, context 64,
    # no dropout). The vocabulary is the text's own: an override.
    "char-decoder": TransformerConfig(
        vocab_size=256, max_seq_len=64, d_model=128, n_layers=4, n_heads=4, d_ff=512, activation="gelu_tanh",
    ),
    # Ours, for examples/train_vit.py: scikit-learn's digits are 8 x 8 pixels of one channel in 10 classes.
    "digits-vit": TransformerConfig(
        image_size=8, patch_size=2, n_channels=1, n_classes=10, d_model=64, n_layers=4, n_heads=4, d_ff=256,
        dropout=0.1,
    ),
    # Ours, for examples/train_encoder_decoder.py; ReLU and post-norm as in Vaswani et al. 2017, "Attention Is All You
    # Need" (arXiv:1706.03762), section 3.
    "reversal": TransformerConfig(
        vocab_size=32, max_seq_len=32, d_model=64, n_layers=2, n_heads=4, d_ff=256,
        activation="relu", norm_position="post",
    ),
}
# fmt: on
