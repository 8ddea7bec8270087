"""The block of a transformer and a stack of them: sublayers on a residual stream.

    pre-norm       x = x + f(norm(x))           Radford et al. 2019; a last norm follows the stack
    post-norm      x = norm(x + f(x))           Vaswani et al. 2017
    sandwich       x = x + norm(f(norm(x)))     Ding et al. 2021, "CogView" (arXiv:2105.13290), section 3.4

The sum and the norm that reads it are one kernel (`add_layer_norm`, `add_rms_norm`), which makes both in one pass over
memory. The norm behind a sum may be the next sublayer's, or the next block's: what a sublayer adds, its branch, travels
with the stream until then.

Dimensions: B batch, S positions of the sequence, T positions attended to, E width of the residual stream (d_model).
FLOPs of a feed-forward layer's forward: 4 B S E d_ff, gated 6.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusedformer.kernels.add_norm import add_layer_norm, add_rms_norm
from fusedformer.kernels.bias_activation import bias_gelu, bias_relu
from fusedformer.nn import GEGLU, GELU, LayerNorm, RMSNorm, SwiGLU
from fusedformer.transformer.attention import NO_CONTEXT, CrossAttention, SelfAttention
from fusedformer.transformer.cache import Cache, KeyValueCache, Memory, StaticKeyValueCache
from fusedformer.transformer.config import TransformerConfig
from fusedformer.transformer.positions import AttentionPositions, Context, Placement

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": GELU,
    "gelu_tanh": partial(GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "geglu": GEGLU,
    "geglu_tanh": partial(GEGLU, approximate="tanh"),
    "swiglu": SwiGLU,
}
BIAS_ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": bias_gelu,
    "gelu_tanh": partial(bias_gelu, approximate="tanh"),
    "relu": bias_relu,
}


def make_norm(config: TransformerConfig) -> LayerNorm | RMSNorm:
    """The norm of this model; an RMSNorm has no bias."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, eps=config.norm_eps)
    return LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


def add_norm(norm: LayerNorm | RMSNorm, branch_BSE: Tensor, x_BSE: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    """The norm of dropout(branch) + x, and that sum, in one pass."""
    branch_BSE = branch_BSE.to(x_BSE.dtype)  # under autocast, linear layers give half precision
    if isinstance(norm, RMSNorm):
        return add_rms_norm(branch_BSE, x_BSE, norm.weight, eps=norm.eps, dropout_p=dropout_p)
    return add_layer_norm(branch_BSE, x_BSE, norm.weight, norm.bias, eps=norm.eps, dropout_p=dropout_p)


def product_adds_bias(x: Tensor) -> bool:
    """Whether a matrix product on x's device adds a bias for nothing, as on a CPU, or the activation had better."""
    return x.is_cpu


class FeedForward(nn.Module):
    """down(activation(up(x))): a network of two layers, at each position by itself.

    Gated (Shazeer 2020, arXiv:2002.05202), the first half of `up` is the gate, which the activation is of.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff * (2 if config.gated else 1), bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.bias_activation = BIAS_ACTIVATIONS.get(config.activation)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x_BSE: Tensor) -> Tensor:
        if self.bias_activation is None or self.up.bias is None or product_adds_bias(x_BSE):
            return self.down(self.activation(self.up(x_BSE)))
        # In one pass with the activation, the backward of which then sums the gradient of the bias on its way.
        return self.down(self.bias_activation(F.linear(x_BSE, self.up.weight), self.up.bias))


class Residual(nn.Module):
    """How one sublayer reads the residual stream and adds to it: norms, dropout, layer scale, stochastic depth."""

    def __init__(self, config: TransformerConfig, skip_p: float) -> None:
        super().__init__()
        self.post_norm = config.norm_position == "post"
        self.dropout, self.skip_p = config.dropout, skip_p
        self.norm = make_norm(config)
        self.out_norm = make_norm(config) if config.norm_position == "sandwich" else None
        # Touvron et al. 2021, "Going deeper with Image Transformers" (arXiv:2103.17239), section 2
        scales = torch.full((config.d_model,), config.layer_scale)
        self.layer_scale = nn.Parameter(scales) if config.layer_scale else None

    def enter(self, x_BSE: Tensor, branch_BSE: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream, with the branch before in it, and what this sublayer reads of it."""
        if self.post_norm:
            return x_BSE, x_BSE
        if branch_BSE is None:
            return x_BSE, self.norm(x_BSE)
        y_BSE, x_BSE = add_norm(self.norm, branch_BSE, x_BSE, self.dropout_p)
        return x_BSE, y_BSE

    def leave(self, x_BSE: Tensor, branch_BSE: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stream, and what this sublayer's branch still has to add to it; nothing with post-norm."""
        if self.out_norm is not None:
            branch_BSE = self.out_norm(branch_BSE)
        if self.layer_scale is not None:
            branch_BSE = branch_BSE * self.layer_scale
        if self.skip_p and self.training:
            branch_BSE = skip_at_random(branch_BSE, self.skip_p)
        if self.post_norm:
            return add_norm(self.norm, branch_BSE, x_BSE, self.dropout_p)[0], None
        return x_BSE, branch_BSE

    @property
    def dropout_p(self) -> float:
        return self.dropout if self.training else 0.0


def skip_at_random(branch_BSE: Tensor, skip_p: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): the branch of some sequences is 0, of others larger.

    Packed sequences share their fate.
    """
    keep_B11 = torch.empty_like(branch_BSE[:, :1, :1]).bernoulli_(1 - skip_p)
    return branch_BSE * (keep_B11 / (1 - skip_p))


class Block(nn.Module):
    """Self-attention, cross-attention where there is any, and feed-forward, each on the residual stream."""

    def __init__(self, config: TransformerConfig, *, causal: bool, cross: bool, skip_p: float = 0.0) -> None:
        super().__init__()
        self.attention_residual = Residual(config, skip_p)
        self.attention = SelfAttention(config, causal=causal)
        if cross:
            self.cross_attention_residual = Residual(config, skip_p)
            self.cross_attention = CrossAttention(config)
        self.feed_forward_residual = Residual(config, skip_p)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BSE: Tensor,
        branch_BSE: Tensor | None = None,
        context: Context = NO_CONTEXT,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The stream and the branch that is still to be added to it, behind this block.

        `context` and `cache` belong to self-attention, `memory` to cross-attention.
        """
        x_BSE, y_BSE = self.attention_residual.enter(x_BSE, branch_BSE)
        x_BSE, branch_BSE = self.attention_residual.leave(x_BSE, self.attention(y_BSE, context, cache))
        if memory is not None:
            x_BSE, y_BSE = self.cross_attention_residual.enter(x_BSE, branch_BSE)
            x_BSE, branch_BSE = self.cross_attention_residual.leave(x_BSE, self.cross_attention(y_BSE, memory))
        x_BSE, y_BSE = self.feed_forward_residual.enter(x_BSE, branch_BSE)
        return self.feed_forward_residual.leave(x_BSE, self.feed_forward(y_BSE))


class Stack(nn.Module):
    """`n_layers` blocks. Unless they are post-norm, they leave the residual stream unscaled: a last norm follows."""

    def __init__(self, config: TransformerConfig, *, causal: bool = False, cross: bool = False) -> None:
        super().__init__()
        skips = torch.linspace(0, config.stochastic_depth, config.n_layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, causal=causal, cross=cross, skip_p=skip_p) for skip_p in skips)
        self.positions = AttentionPositions(config, causal=causal)
        self.final_norm = None if config.norm_position == "post" else make_norm(config)
        self.dropout, self.activation_checkpointing = config.dropout, config.activation_checkpointing

    def forward(
        self,
        x_BSE: Tensor,
        placement: Placement | None = None,
        caches: Sequence[Cache] | None = None,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        """Transform (B, S, E); `caches` and `memories` have one entry per block. No placement: no padding."""
        if placement is None:
            placement = Placement(torch.arange(x_BSE.shape[1], device=x_BSE.device))
        context = self.positions(x_BSE, placement)
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        branch_BSE = None
        for index, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            cache = None if caches is None else caches[index]
            memory = None if memories is None else memories[index]
            x_BSE, branch_BSE = run(x_BSE, branch_BSE, context, cache, memory)
        if self.final_norm is None or branch_BSE is None:  # post-norm: neither is there
            return x_BSE
        return add_norm(self.final_norm, branch_BSE, x_BSE, self.dropout if self.training else 0.0)[0]

    def remember(self, context_BTE: Tensor, mask_B11T: Tensor | None) -> list[Memory]:
        """What each block's cross-attention reads of another sequence."""
        attentions = [module for module in self.modules() if isinstance(module, CrossAttention)]
        return [attention.remember(context_BTE, mask_B11T) for attention in attentions]

    def new_caches(self, max_seq_len: int, *, static: bool = False) -> list[Cache]:
        """An empty cache for each block."""
        device = next(self.parameters()).device
        return [StaticKeyValueCache(max_seq_len, device) if static else KeyValueCache(max_seq_len) for _ in self.blocks]
