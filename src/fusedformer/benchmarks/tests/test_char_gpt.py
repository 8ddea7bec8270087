"""A training step of a small GPT over characters: ours beside the same model in plain PyTorch, written by hand.

4 layers of width 128, 64 characters, 12 rows: so small that a CPU spends a share of a step between the kernels.
`pytest benchmarks -k char_gpt` prints both times. Source of the sizes: nanoGPT, config/train_shakespeare_char.py, with
the changes that its README makes for a CPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.outputs import mean_cross_entropy

pytest.importorskip("pytest_benchmark")

BATCH, LENGTH, VOCABULARY = 12, 64, 65


class PlainBlock(nn.Module):
    """A pre-norm block of a GPT."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        E, bias = config.d_model, config.bias
        self.n_heads = config.n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(E, bias=bias), nn.LayerNorm(E, bias=bias)
        self.qkv, self.out = nn.Linear(E, 3 * E, bias=bias), nn.Linear(E, E, bias=bias)
        self.up, self.down = nn.Linear(E, config.d_ff, bias=bias), nn.Linear(config.d_ff, E, bias=bias)

    def forward(self, x_BSE: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_1(x_BSE)).chunk(3, -1)
        q, k, v = (x.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for x in qkv)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BSE = x_BSE + self.out(attended.transpose(1, 2).flatten(2))
        return x_BSE + self.down(F.gelu(self.up(self.norm_2(x_BSE)), approximate="tanh"))


class PlainGPT(nn.Module):
    """Token and position tables, blocks, a norm, and the token table again."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.Sequential(*(PlainBlock(config) for _ in range(config.n_layers)))
        self.norm = nn.LayerNorm(config.d_model, bias=config.bias)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSE = self.tokens(tokens_BS) + self.positions(torch.arange(tokens_BS.shape[1]))
        return F.linear(self.norm(self.blocks(x_BSE)), self.tokens.weight)


def plain_loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten())


@pytest.mark.parametrize(
    ("model", "loss"), [(Decoder, mean_cross_entropy), (PlainGPT, plain_loss)], ids=["ours", "plain"]
)
def test_char_gpt(benchmark: Any, model: Callable[..., nn.Module], loss: Callable[..., Tensor]) -> None:
    config = TransformerConfig.preset("char-decoder", vocab_size=VOCABULARY)
    assert (config.n_layers, config.d_model, config.max_seq_len) == (4, 128, LENGTH)
    torch.manual_seed(0)
    module, tokens = model(config).train(), torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    parameters = list(module.parameters())
    assert sum(parameter.numel() for parameter in parameters) == 809_856  # of both alike
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(module(tokens[:, :-1]), tokens[:, 1:])
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return value.item()

    benchmark.group = "training step of a GPT over characters"
    first = step()
    benchmark.pedantic(step, rounds=20, warmup_rounds=3)  # once, where `--benchmark-disable` is given
    assert step() < first
