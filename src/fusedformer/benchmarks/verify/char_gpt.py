"""A training step of a small GPT over characters: ours beside the same model in plain PyTorch, written by hand.

4 layers of width 128, 64 characters, 12 rows: so small that a CPU spends a share of a step between the kernels. Both
start from the same weights and see the same text; in bfloat16 both train under autocast, weights in float32.
Source of the sizes: nanoGPT, config/train_shakespeare_char.py, with the changes that its README makes for a CPU.

Dimensions: B batch, S sequence, E d_model, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.benchmarks.verify.public import renamed
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.outputs import mean_cross_entropy

BATCH, LENGTH, VOCABULARY = 12, 64, 65
# Names of our tensors and the plain model's, replaced in this order.
_PLAIN_NAMES = {
    "token_embedding": "tokens",
    "position_embedding": "positions",
    "stack.blocks": "blocks",
    "attention_residual.norm": "norm_1",
    "feed_forward_residual.norm": "norm_2",
    "attention.": "",
    "feed_forward.": "",
    "stack.final_norm": "norm",
}


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
        positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        x_BSE = self.tokens(tokens_BS) + self.positions(positions_S)
        return F.linear(self.norm(self.blocks(x_BSE)), self.tokens.weight)


def plain_loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten())


@dataclass(frozen=True)
class Training:
    """A model in training on one batch, by AdamW with clipped gradients."""

    model: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    tokens: Tensor
    dtype: torch.dtype

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=1e-3)

    def step(self) -> Tensor:
        """Train on the batch once; the loss before that."""
        with torch.inference_mode(False), torch.enable_grad():
            self.optimizer.zero_grad()
            loss = self.forward()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            return loss.detach()

    def gradients(self) -> dict[str, Tensor]:
        """Of every parameter by its name; nothing is trained."""
        with torch.inference_mode(False), torch.enable_grad():
            named = dict(self.model.named_parameters())
            found = torch.autograd.grad(self.forward(), list(named.values()))
            return dict(zip(named, found, strict=True))

    def forward(self) -> Tensor:
        with torch.autocast(self.tokens.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.loss(self.model(self.tokens[:, :-1]), self.tokens[:, 1:])


def make_trainings(device: torch.device, dtype: torch.dtype) -> tuple[Training, Training]:
    """Ours and the plain model's, of the same random weights and text."""
    config = TransformerConfig.preset("char-decoder", vocab_size=VOCABULARY)
    with torch.inference_mode(False):
        torch.manual_seed(0)
        ours, plain = Decoder(config).to(device).train(), PlainGPT(config).to(device).train()
        plain.load_state_dict(as_plain(ours.state_dict()))
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1)).to(device)
    return Training(ours, mean_cross_entropy, tokens, dtype), Training(plain, plain_loss, tokens, dtype)


def as_plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by the plain model's names."""
    return renamed(tensors, _PLAIN_NAMES)


def compare_gradients(ours: Training, plain: Training) -> tuple[float, float]:
    """The largest element of any gradient, and the largest difference between the two models'."""
    left, right = as_plain(ours.gradients()), plain.gradients()
    largest = max(gradient.abs().max().item() for gradient in right.values())
    return largest, max((left[name] - gradient).abs().max().item() for name, gradient in right.items())
