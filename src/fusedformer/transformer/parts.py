"""The parts that every architecture here is made of: embeddings, attention, feed-forward, the block and the stack.

Dimensions: B batch, S positions of the sequence, T positions attended to, H query heads, K key and value heads,
D head width, E width of the residual stream (d_model), V vocabulary.

Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3; pre-norm as in Radford et al.
2019; grouped key and value heads as in Ainslie et al. 2023 (arXiv:2305.13245).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.nn import GELU, LayerNorm
from fusedformer.transformer.cache import Cache, KeyValueCache, Memory, StaticKeyValueCache
from fusedformer.transformer.checks import check_mask, check_tokens
from fusedformer.transformer.config import TransformerConfig

IGNORED = -100  # a label that does not count; what PyTorch's cross-entropy ignores by default
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": GELU,
    "gelu_tanh": partial(GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


class TokenEmbedding(nn.Embedding):
    """A table with one vector per token of the vocabulary."""

    def forward(self, tokens_BS: Tensor) -> Tensor:
        check_tokens("tokens", tokens_BS, self.num_embeddings, self.weight.device)
        return super().forward(tokens_BS)


class PositionEmbedding(nn.Embedding):
    """A learned vector per position, added to the sequence."""

    def forward(self, x_BSE: Tensor, mask_BT: Tensor | None = None, n_cached: int | Tensor = 0) -> Tensor:
        """Add the vectors of the positions behind `n_cached` tokens, which came before and sit in a cache.

        With a padding mask for both, positions count real tokens alone: where padding stands changes nothing.
        """
        if isinstance(n_cached, Tensor):  # a static cache's: no value is read, so that a step can be recorded
            places_S = n_cached + torch.arange(x_BSE.shape[1], device=n_cached.device)
            if mask_BT is None:
                return x_BSE + super().forward(places_S)
            positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
            return x_BSE + super().forward(positions_BT.index_select(1, places_S))
        end = n_cached + x_BSE.shape[1]
        if end > self.num_embeddings:
            raise ValueError(f"a sequence of {end} positions is longer than max_seq_len {self.num_embeddings}")
        if mask_BT is None:
            return x_BSE + self.weight[n_cached:end]
        positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        return x_BSE + super().forward(positions_BT[:, n_cached:])


class MultiHeadAttention(nn.Module):
    """What self-attention and cross-attention share: the split into heads and the output projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.n_kv_heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def split_heads(self, x: Tensor, *n_heads: int) -> tuple[Tensor, ...]:
        """(B, S, sum(n_heads) * D) as one (B, S, n, D) view per number of heads: nothing is copied or transposed."""
        return x.unflatten(-1, (-1, self.head_dim)).split(n_heads, dim=2)

    def merge_heads(self, y_BSHD: Tensor) -> Tensor:
        return self.out(y_BSHD.flatten(2))


class SelfAttention(MultiHeadAttention):
    """Each position attends to the positions of its own sequence; with `causal`, to those up to itself."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__(config)
        self.causal = causal
        width = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.d_model, width, bias=config.bias)

    def forward(self, x_BSE: Tensor, mask_B1ST: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        q_BSHD, k_BTKD, v_BTKD = self.split_heads(self.qkv(x_BSE), self.n_heads, self.n_kv_heads, self.n_kv_heads)
        if cache is not None:
            k_BTKD, v_BTKD = cache.append(k_BTKD, v_BTKD)
        # The causal mask is aligned at the bottom right, so S new positions after T - S cached ones need nothing more,
        # and one position sees all of them. The mask for a static cache is causal itself.
        causal = self.causal and q_BSHD.shape[1] > 1 and not isinstance(cache, StaticKeyValueCache)
        return self.merge_heads(attention(q_BSHD, k_BTKD, v_BTKD, causal=causal, mask=mask_B1ST))


class CrossAttention(MultiHeadAttention):
    """Each position of one sequence attends to all positions of another."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.query = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.key_value = nn.Linear(config.d_model, 2 * self.n_kv_heads * self.head_dim, bias=config.bias)

    def remember(self, context_BTE: Tensor, mask_B11T: Tensor | None) -> Memory:
        """Keys and values of the other sequence, computed once however many positions come to attend to them."""
        k_BTKD, v_BTKD = self.split_heads(self.key_value(context_BTE), self.n_kv_heads, self.n_kv_heads)
        return Memory(k_BTKD, v_BTKD, mask_B11T)

    def forward(self, x_BSE: Tensor, memory: Memory) -> Tensor:
        (q_BSHD,) = self.split_heads(self.query(x_BSE), self.n_heads)
        return self.merge_heads(attention(q_BSHD, memory.keys, memory.values, mask=memory.mask))


class FeedForward(nn.Module):
    """down(activation(up(x))): a network of two layers, at each position by itself."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x_BSE: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_BSE)))


class Block(nn.Module):
    """Self-attention, cross-attention where there is any, and feed-forward, each with a norm and a residual path."""

    def __init__(self, config: TransformerConfig, *, causal: bool, cross: bool) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.dropout = nn.Dropout(config.dropout)
        self.attention_norm = make_norm(config)
        self.attention = SelfAttention(config, causal=causal)
        if cross:
            self.cross_attention_norm = make_norm(config)
            self.cross_attention = CrossAttention(config)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BSE: Tensor,
        mask_B1ST: Tensor | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Transform (B, S, E); `mask_B1ST` and `cache` belong to self-attention, `memory` to cross-attention."""
        attend = partial(self.attention, mask_B1ST=mask_B1ST, cache=cache)
        x_BSE = self.residual(x_BSE, attend, self.attention_norm)
        if memory is not None:
            attend = partial(self.cross_attention, memory=memory)
            x_BSE = self.residual(x_BSE, attend, self.cross_attention_norm)
        return self.residual(x_BSE, self.feed_forward, self.feed_forward_norm)

    def residual(self, x_BSE: Tensor, sublayer: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.pre_norm:
            return x_BSE + self.dropout(sublayer(norm(x_BSE)))
        return norm(x_BSE + self.dropout(sublayer(x_BSE)))


class Stack(nn.Module):
    """`n_layers` blocks. Pre-norm blocks leave the residual stream unscaled, so a last norm follows them."""

    def __init__(self, config: TransformerConfig, *, causal: bool = False, cross: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, causal=causal, cross=cross) for _ in range(config.n_layers))
        self.final_norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()

    def forward(
        self,
        x_BSE: Tensor,
        mask_B1ST: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        """`caches` and `memories` have one entry per block."""
        for index, block in enumerate(self.blocks):
            cache = None if caches is None else caches[index]
            memory = None if memories is None else memories[index]
            x_BSE = block(x_BSE, mask_B1ST, cache, memory)
        return self.final_norm(x_BSE)

    def remember(self, context_BTE: Tensor, mask_B11T: Tensor | None) -> list[Memory]:
        """What each block's cross-attention reads of another sequence."""
        attentions = [module for module in self.modules() if isinstance(module, CrossAttention)]
        return [attention.remember(context_BTE, mask_B11T) for attention in attentions]

    def new_caches(self, max_seq_len: int, *, static: bool = False) -> list[Cache]:
        device = next(self.parameters()).device
        return [StaticKeyValueCache(max_seq_len, device) if static else KeyValueCache(max_seq_len) for _ in self.blocks]


def make_norm(config: TransformerConfig) -> LayerNorm:
    return LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


def key_mask(attention_mask: Tensor | None, x_BSE: Tensor, caches: Sequence[Cache] | None = None) -> Tensor | None:
    """A padding mask (B, T) for cached tokens and these, checked, as attention broadcasts it: (B, 1, 1 or S, T)."""
    n_new = x_BSE.shape[1]
    if attention_mask is not None:
        n_keys = caches[0].n_keys(n_new) if caches else n_new
        check_mask("attention_mask", attention_mask, (x_BSE.shape[0], n_keys), x_BSE.device)
    if caches:
        return caches[0].key_mask(attention_mask, n_new)
    return None if attention_mask is None else attention_mask[:, None, None]


def pool(hidden_BSE: Tensor, how: str, mask_BS: Tensor | None = None) -> Tensor:
    """One vector (B, E) per sequence: that of its first token ("class"), or the mean of those of its tokens ("mean").

    Positions that are False in the mask do not take part, whatever they hold; a row of these alone gives zeros.
    """
    if mask_BS is None:
        return hidden_BSE[:, 0] if how == "class" else hidden_BSE.mean(dim=1)
    hidden_BSE = hidden_BSE.masked_fill(~mask_BS.unsqueeze(-1), 0)
    if how == "class":
        first_B11 = mask_BS.int().argmax(dim=1)[:, None, None]
        return hidden_BSE.take_along_dim(first_B11, dim=1).squeeze(1)
    total_BE = hidden_BSE.sum(dim=1, dtype=accumulate_dtype(hidden_BSE.dtype))
    return (total_BE / mask_BS.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden_BSE.dtype)


def mean_cross_entropy(logits_BSV: Tensor, labels_BS: Tensor, mask_BS: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats, float32 (float64 for float64), of the labels that are True in the mask.

    Where there is none, the loss is 0, and so are its gradients.
    """
    counts_BS = torch.ones_like(labels_BS, dtype=torch.bool) if mask_BS is None else mask_BS
    labels_BS = labels_BS.long().masked_fill(~counts_BS, IGNORED)
    logits_BSV = logits_BSV.to(accumulate_dtype(logits_BSV.dtype))
    total = F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / counts_BS.sum().clamp(min=1)
