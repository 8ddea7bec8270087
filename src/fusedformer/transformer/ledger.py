"""Where the parameters of a decoder sit and where its FLOPs go: arithmetic on its sizes, one row for each kind.

Dimensions: V vocabulary, T context, E d_model, L layers, H query heads, K key heads, D head width, F d_ff.
A matrix of n parameters costs a token 2 n FLOPs; attention over t positions 2 H D t for the scores and as many for the
weighted sum, t being (T + 1) / 2 on average over a full context under the causal mask. Norms, activations and the
softmax are not counted: they are a fraction of a percent.
Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models" (arXiv:2001.08361), table 1.
"""

from dataclasses import dataclass

from fusedformer.transformer.config import TransformerConfig


@dataclass(frozen=True)
class Row:
    """One kind of parameters, summed over layers and heads, and the FLOPs of a token's forward pass through them."""

    name: str
    parameters: int
    flops: int


@dataclass(frozen=True)
class Ledger:
    """All rows of a model."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """Of the forward pass, per token."""
        return sum(row.flops for row in self.rows)

    @property
    def training_flops(self) -> int:
        """Per token: the backward pass costs twice the forward."""
        return 3 * self.flops

    def __str__(self) -> str:
        lines = [f"{'':<22}{'parameters':>20}{'FLOPs per token':>20}"]
        rows = [*self.rows, Row("total", self.parameters, self.flops)]
        return "\n".join([*lines, *(f"{row.name:<22}{row.parameters:>20,}{row.flops:>20,}" for row in rows)])


def ledger(config: TransformerConfig) -> Ledger:
    """The ledger of a `Decoder` of this configuration.

    Raises:
        ValueError: the configuration has no vocab_size or max_seq_len.
    """
    config.require("Decoder", ("vocab_size", "max_seq_len"))
    V, T, E, L = config.vocab_size, config.max_seq_len, config.d_model, config.n_layers
    H, D, F = config.n_heads, config.head_dim, config.d_ff
    K = H if config.n_kv_heads is None else config.n_kv_heads
    ups = 2 if config.gated else 1
    attention_flops = L * H * D * (T + 1)
    matrices = {
        "query": L * E * H * D,
        "key": L * E * K * D,
        "value, down": L * E * K * D,
        "value, up (output)": L * H * D * E,
        "feed-forward up": L * E * F * ups,
        "feed-forward down": L * F * E,
    }
    biases = L * ((H + 2 * K) * D + E + F * ups + E) if config.bias else 0
    return Ledger((
        Row("token embedding", V * E, 0),
        Row("position embedding", T * E if config.positions == "learned" else 0, 0),
        *(Row(name, count, 2 * count) for name, count in matrices.items()),
        Row("attention scores", config.relative_buckets * H if config.positions == "relative" else 0, attention_flops),
        Row("attention, weighted", 0, attention_flops),
        Row("biases", biases, 0),
        Row("norms, layer scale", norm_parameters(config), 0),
        Row("unembedding", 0 if config.tie_embeddings else V * E, 2 * V * E),
    ))  # fmt: skip


def norm_parameters(config: TransformerConfig) -> int:
    """Weights and biases of all norms, and layer scales."""
    per_block = 4 if config.norm_position == "sandwich" else 2
    count = config.n_layers * per_block + (config.norm_position != "post")
    has_bias = config.bias and config.norm == "layer"
    scales = 2 * config.n_layers if config.layer_scale else 0
    return (count * (1 + has_bias) + scales) * config.d_model
