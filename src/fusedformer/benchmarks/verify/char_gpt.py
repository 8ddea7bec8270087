"""A small GPT over characters, ours and the same in plain PyTorch, written by hand: what a training step costs.

4 layers of width 128, 64 characters, 12 rows: so small that a CPU spends a share of a step between the kernels.
Source of the sizes: nanoGPT, config/train_shakespeare_char.py, with the changes that its README makes for a CPU.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.outputs import mean_cross_entropy

BATCH, LENGTH, VOCABULARY = 12, 64, 65
# Names of ours, replaced in this order by those of the plain model.
_NAMES = {
    "token_embedding": "tokens", "position_embedding": "positions", "stack.final_norm": "norm", "stack.": "",
    "attention_residual.norm": "norm_1", "feed_forward_residual.norm": "norm_2", "attention.": "", "feed_forward.": "",
}  # fmt: skip


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


def make_pair(device: torch.device) -> tuple[Decoder, PlainGPT]:
    """Ours and the plain model, of the same random weights."""
    with torch.inference_mode(False):
        torch.manual_seed(0)
        config = TransformerConfig.preset("char-decoder", vocab_size=VOCABULARY)
        ours, plain = Decoder(config).to(device), PlainGPT(config).to(device)
        plain.load_state_dict({_plain_name(name): tensor for name, tensor in ours.state_dict().items()})
    return ours, plain


def loss_of(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross entropy of the characters behind each position of (B, S + 1); by autocast, of anything but float32."""
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(tokens[:, :-1])
        if isinstance(model, Decoder):
            return mean_cross_entropy(logits, tokens[:, 1:])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def gradients(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the loss, all parameters' in a row, by the plain model's names in alphabetical order."""
    with torch.inference_mode(False), torch.enable_grad():
        parameters = dict(sorted((_plain_name(name), parameter) for name, parameter in model.named_parameters()))
        found = torch.autograd.grad(loss_of(model, tokens.clone(), dtype), list(parameters.values()))
        return torch.cat([gradient.flatten() for gradient in found])


def training(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A step of AdamW with gradients clipped to norm 1; returns the loss before it."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad()
            loss = loss_of(model, tokens.clone(), dtype)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            return loss.detach()

    return step


def _plain_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name
