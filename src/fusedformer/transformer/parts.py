"""The parts that every architecture here is made of: embeddings, attention, feed-forward, the block and the stack.

Dimensions: B batch, S positions of the sequence, T positions attended to, H query heads, K key and value heads,
D head width, E width of the residual stream (d_model), V vocabulary.

Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3; pre-norm as in Radford et al.
2019; grouped key and value heads as in Ainslie et al. 2023 (arXiv:2305.13245).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels.attention import attention
from fusedformer.nn import GELU, LayerNorm
from fusedformer.transformer.config import TransformerConfig

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": GELU,
    "gelu_tanh": partial(GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


class TokenEmbedding(nn.Embedding):
    """A table with one vector per token of the vocabulary."""

    def forward(self, tokens_BS: Tensor) -> Tensor:
        check_tokens("tokens", tokens_BS, self.num_embeddings)
        return super().forward(tokens_BS)


class PositionEmbedding(nn.Embedding):
    """A learned vector per position, added to the sequence."""

    def forward(self, x_BSE: Tensor, start: int = 0) -> Tensor:
        """Add the positions `start` to `start + S - 1`: `start` tokens came before and sit in a cache."""
        end = start + x_BSE.shape[1]
        if end > self.num_embeddings:
            raise ValueError(f"a sequence of {end} positions is longer than max_seq_len {self.num_embeddings}")
        return x_BSE + self.weight[start:end]


class KeyValueCache:
    """The keys and values that one attention layer has seen so far, for decoding token by token.

    The buffers have their final size from the first `append` on, so that no step copies what came before.
    """

    def __init__(self, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self.length = 0

    def append(self, k_BSKD: Tensor, v_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of S further positions; return those of all T positions so far."""
        start, end = self.length, self.length + k_BSKD.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"a cache of {self.max_seq_len} positions cannot hold {end}")
        if start == 0:
            B, _, K, D = k_BSKD.shape
            self.k_BTKD = k_BSKD.new_empty(B, self.max_seq_len, K, D)
            self.v_BTKD = v_BSKD.new_empty(B, self.max_seq_len, K, D)
        self.k_BTKD[:, start:end] = k_BSKD
        self.v_BTKD[:, start:end] = v_BSKD
        self.length = end
        return self.k_BTKD[:, :end], self.v_BTKD[:, :end]


class Memory(NamedTuple):
    """What one layer's cross-attention reads: the keys, values and padding mask of the encoder's output."""

    keys: Tensor  # (B, T, K, D)
    values: Tensor  # (B, T, K, D)
    mask: Tensor | None  # bool, (B, 1, 1, T)


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

    def forward(self, x_BSE: Tensor, mask_B11T: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        q_BSHD, k_BTKD, v_BTKD = self.split_heads(self.qkv(x_BSE), self.n_heads, self.n_kv_heads, self.n_kv_heads)
        if cache is not None:
            k_BTKD, v_BTKD = cache.append(k_BTKD, v_BTKD)
        # The causal mask is aligned at the bottom right, so S new positions after T - S cached ones need nothing more.
        return self.merge_heads(attention(q_BSHD, k_BTKD, v_BTKD, causal=self.causal, mask=mask_B11T))


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
        mask_B11T: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Transform (B, S, E); `mask_B11T` and `cache` belong to self-attention, `memory` to cross-attention."""
        attend = partial(self.attention, mask_B11T=mask_B11T, cache=cache)
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
        mask_B11T: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        """`caches` and `memories` have one entry per block."""
        for index, block in enumerate(self.blocks):
            cache = None if caches is None else caches[index]
            memory = None if memories is None else memories[index]
            x_BSE = block(x_BSE, mask_B11T, cache, memory)
        return self.final_norm(x_BSE)

    def remember(self, context_BTE: Tensor, mask_B11T: Tensor | None) -> list[Memory]:
        """What each block's cross-attention reads of another sequence."""
        attentions = [module for module in self.modules() if isinstance(module, CrossAttention)]
        return [attention.remember(context_BTE, mask_B11T) for attention in attentions]

    def new_caches(self, max_seq_len: int) -> list[KeyValueCache]:
        return [KeyValueCache(max_seq_len) for _ in self.blocks]


def make_norm(config: TransformerConfig) -> LayerNorm:
    return LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


def unembed(x_BSE: Tensor, tokens: TokenEmbedding, head: nn.Linear | None) -> Tensor:
    """Logits (B, S, V): by the head, or tied, by the token embeddings themselves (Press and Wolf 2017)."""
    return F.linear(x_BSE, tokens.weight if head is None else head.weight)


def pool(hidden_BSE: Tensor, how: str, mask_BS: Tensor | None = None) -> Tensor:
    """One vector (B, E) per sequence: the first position's ("class"), or the mean of the unmasked ones ("mean")."""
    if how == "class":
        return hidden_BSE[:, 0]
    if mask_BS is None:
        return hidden_BSE.mean(dim=1)
    weight_BS1 = mask_BS.unsqueeze(-1).to(hidden_BSE.dtype)
    return (hidden_BSE * weight_BS1).sum(dim=1) / weight_BS1.sum(dim=1).clamp(min=1)


def attention_mask(mask_BS: Tensor | None, shape: torch.Size) -> Tensor | None:
    """A padding mask (True: a real token) for tokens of this shape, as attention broadcasts it: (B, 1, 1, T)."""
    if mask_BS is None:
        return None
    check_mask(mask_BS, shape)
    return mask_BS[:, None, None, :]


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise ValueError unless this is a bool mask for tokens of this shape."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"the mask must be bool of the tokens' shape {tuple(shape)}, got {mask.dtype} of {tuple(mask.shape)}"
        )


def check_tokens(name: str, tokens_BS: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless these are (B, S) indices, S at least 1, into a vocabulary of this size."""
    shape, dtype = tuple(tokens_BS.shape), tokens_BS.dtype
    if dtype not in (torch.int32, torch.int64) or len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name} must be int32 or int64 of shape (B, S), S at least 1, got {dtype} of {shape}")
    # Reading values back from a GPU would stall it, and cannot be traced: there PyTorch's own device check remains.
    if tokens_BS.device.type == "cpu" and tokens_BS.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in tokens_BS.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{name} hold values from {low} to {high}, outside a vocabulary of {vocab_size}")
