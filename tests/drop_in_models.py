"""What the tests of the drop-ins share: a model with one module of each kind, and calls as they go on a GPU."""

import pytest
import torch
from torch import Tensor, nn

from fusedformer.drop_in import calls, routing

WIDTH, CLASSES = 16, 11


class Net(nn.Module):
    """Tokens to a loss, through every module of PyTorch's that `patch` knows; the head is tied to the embedding."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, dropout, nn.GELU(), batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.decoder = nn.TransformerDecoderLayer(WIDTH, 2, 24, dropout, norm_first=True, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norms = nn.Sequential(nn.LayerNorm(WIDTH), nn.GELU("tanh"), nn.RMSNorm(WIDTH), nn.Softmax(-1))
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.head.weight = self.embedding.weight
        self.log_softmax = nn.LogSoftmax(-1)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of (B, S) tokens, the last of each row padding."""
        x = self.embedding(tokens)
        padding = torch.zeros_like(tokens, dtype=torch.bool)
        padding[:, -1] = True
        x = self.decoder(x, self.encoder(x, src_key_padding_mask=padding))
        out, weights = self.attention(x, x, x)
        out = out + weights @ self.norms(out)
        logits = self.log_softmax(self.head(out))
        return self.loss(logits.flatten(0, 1), tokens.flatten())


def make_net(dropout: float = 0.0) -> Net:
    """The same weights each time."""
    torch.manual_seed(0)
    net = Net(dropout)
    for name, parameter in net.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0)
    return net


def make_tokens() -> Tensor:
    """(2, 5)."""
    return torch.randint(CLASSES, (2, 5), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(net: nn.Module, tokens: Tensor) -> list[Tensor]:
    """The loss, and the gradient of each parameter that has one."""
    net.zero_grad()
    loss = net(tokens)
    loss.backward()
    return [loss.detach(), *(x.grad.clone() for x in net.parameters() if x.grad is not None)]


def counts(model: nn.Module) -> dict[str, int]:
    """Calls by op, of the modules of `model`; they start at 0 again."""
    found = calls.of(model.modules())
    by_op: dict[str, int] = {}
    for (op, _, _), count in found.served.items():
        by_op[op] = by_op.get(op, 0) + count
    calls.forget(model.modules())
    return by_op


def serve_everywhere(patch: pytest.MonkeyPatch) -> None:
    """Let patched modules call our functions as they do on a GPU, though PyTorch computes those here."""
    patch.setattr(routing, "has_kernel", lambda op, x: True)
