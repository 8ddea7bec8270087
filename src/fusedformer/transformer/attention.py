"""Multi-head attention of a transformer: self and cross, over `fusedformer.attention`.

Dimensions: B batch, S positions of the sequence, T positions attended to, H query heads, K key and value heads,
D head width, E width of the residual stream (d_model). FLOPs of a layer's forward: 4 B S E D (H + K) for the
projections, 4 B S T H D for the attention itself.

Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3.2; grouped key and value heads as
in Ainslie et al. 2023 (arXiv:2305.13245).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fusedformer.kernels.attention.op import attention
from fusedformer.transformer.cache import KeyValueCache, Memory
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.positions import Context

NO_CONTEXT = Context()


class MultiHeadAttention(nn.Module):
    """What self-attention and cross-attention share: heads, the attention itself, and the way out of it."""

    watcher: Callable[[Tensor, Tensor, dict[str, Any]], None] | None = None  # see record_attention

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.n_kv_heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
        self.scale = None if config.scale_attention else 1.0
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    @property
    def value_projection(self) -> nn.Linear:
        """The linear layer whose last K * D outputs are the values."""
        raise NotImplementedError

    def split_heads(self, x: Tensor, *n_heads: int) -> tuple[Tensor, ...]:
        """(B, S, sum(n_heads) * D) as one (B, S, n, D) view per number of heads: nothing is copied or transposed."""
        return x.unflatten(-1, (-1, self.head_dim)).split(n_heads, dim=2)

    def attend(self, q_BSHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, **settings: Any) -> Tensor:
        """Attention, then its heads side by side through the output projection: (B, S, E)."""
        if self.watcher is not None:
            self.watcher(q_BSHD, k_BTKD, {**settings, "scale": self.scale})
        if "cu_seqlens_q" in settings:  # packed sequences are a batch of one here, and have no batch there
            q_BSHD, k_BTKD, v_BTKD = q_BSHD.squeeze(0), k_BTKD.squeeze(0), v_BTKD.squeeze(0)
            return self.out(attention(q_BSHD, k_BTKD, v_BTKD, scale=self.scale, **settings).flatten(1).unsqueeze(0))
        return self.out(attention(q_BSHD, k_BTKD, v_BTKD, scale=self.scale, **settings).flatten(2))

    def value_map(self, head: int) -> tuple[Tensor, Tensor]:
        """What `head` adds for a position that it attends to, up @ down @ x, as its two factors.

        Down (D, E) takes the residual stream into the head, up (E, D) takes it back; their product, of rank D, is the
        head's value map. Biases aside, the layer's output is the sum over heads of pattern @ x @ down.T @ up.T.

        Raises:
            ValueError: if there is no such head.
        """
        if not 0 <= head < self.n_heads:
            raise ValueError(f"head is {head}, expected 0 to {self.n_heads - 1}")
        kv_head = head // (self.n_heads // self.n_kv_heads)
        values_KDE = self.value_projection.weight.unflatten(0, (-1, self.head_dim))[-self.n_kv_heads :]
        return values_KDE[kv_head], self.out.weight.unflatten(1, (-1, self.head_dim))[:, head]


class SelfAttention(MultiHeadAttention):
    """Each position attends to the positions of its own sequence; with `causal`, to those up to itself."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config)
        self.causal = causal
        width = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.d_model, width, bias=config.bias)

    @property
    def value_projection(self) -> nn.Linear:
        return self.qkv

    def forward(self, x_BSE: Tensor, context: Context = NO_CONTEXT, cache: KeyValueCache | None = None) -> Tensor:
        H, K = self.n_heads, self.n_kv_heads
        if context.rotation is None:
            q_BSHD, k_BTKD, v_BTKD = self.split_heads(self.qkv(x_BSE), H, K, K)
        else:
            qk, v_BTKD = self.split_heads(self.qkv(x_BSE), H + K, K)
            q_BSHD, k_BTKD = context.rotation.turn(qk).split((H, K), dim=2)
        if cache is not None:
            k_BTKD, v_BTKD = cache.append(k_BTKD, v_BTKD)
        # The causal mask is aligned at the bottom right, so S new positions after T - S cached ones need nothing more.
        return self.attend(q_BSHD, k_BTKD, v_BTKD, causal=self.causal, **context.settings)


class CrossAttention(MultiHeadAttention):
    """Each position of one sequence attends to all positions of another."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.query = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.key_value = nn.Linear(config.d_model, 2 * self.n_kv_heads * self.head_dim, bias=config.bias)

    @property
    def value_projection(self) -> nn.Linear:
        return self.key_value

    def remember(self, context_BTE: Tensor, mask_B11T: Tensor | None = None) -> Memory:
        """Keys and values of the other sequence, computed once however many positions come to attend to them."""
        k_BTKD, v_BTKD = self.split_heads(self.key_value(context_BTE), self.n_kv_heads, self.n_kv_heads)
        return Memory(k_BTKD, v_BTKD, mask_B11T)

    def forward(self, x_BSE: Tensor, memory: Memory) -> Tensor:
        (q_BSHD,) = self.split_heads(self.query(x_BSE), self.n_heads)
        return self.attend(q_BSHD, memory.keys, memory.values, mask=memory.mask)
