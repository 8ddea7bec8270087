"""Models that tests of `fusedformer profile` build: a plain PyTorch decoder, and one of ours, of a few blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer import Decoder, TransformerConfig

VOCABULARY = 1000


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a network of two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainDecoder(nn.Module):
    """Tokens and targets in, the loss out."""

    def __init__(self, width: int, heads: int, n_layers: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(n_layers))
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.lm_head(x).flatten(0, 1), targets.flatten())


def plain(context: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A plain model and its inputs."""
    tokens, targets = (torch.randint(VOCABULARY, (1, context)) for _ in range(2))
    return PlainDecoder(128, 4, 3), (tokens, targets)


def ours(context: int, n_layers: int = 6) -> Decoder:
    """One of this package, as Llama."""
    sizes = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_ff": 160, "vocab_size": 256}
    return Decoder(TransformerConfig.preset("llama-3-8b", max_seq_len=context, n_layers=n_layers, **sizes))


def gpt(context: int) -> Decoder:
    """One of this package, as GPT-2: a key head for each query head."""
    sizes = {"d_model": 64, "n_layers": 3, "n_heads": 4, "d_ff": 256, "vocab_size": 512, "dropout": 0.0}
    return Decoder(TransformerConfig.preset("gpt2", max_seq_len=context, **sizes))


def nothing(context: int) -> int:
    """No model."""
    return context
