"""Small models of every architecture, and the same blocks in torch.nn with the same weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import fusedformer.nn
from fusedformer import Decoder, Encoder, EncoderDecoder, TransformerConfig, VisionTransformer
from fusedformer.kernels.reference import accumulate_dtype
from fusedformer.transformer import attention as attention_module
from fusedformer.transformer import blocks, outputs
from fusedformer.transformer.blocks import Block, Stack
from fusedformer.transformer.model import Model

SIZES: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64}
TEXT: dict[str, Any] = {**SIZES, "vocab_size": 19, "max_seq_len": 12}
IMAGE: dict[str, Any] = {**SIZES, "image_size": 8, "patch_size": 4, "n_channels": 2, "n_classes": 5}

ARCHITECTURES: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "encoder": (Encoder, {**TEXT, "type_vocab_size": 2, "norm_position": "post", "pooling": "mean"}),
    "decoder": (Decoder, {**TEXT, "n_kv_heads": 1, "activation": "gelu_tanh"}),
    "encoder_decoder": (EncoderDecoder, {**TEXT, "activation": "relu", "norm_position": "post"}),
    "vision_transformer": (VisionTransformer, IMAGE),
}


def make_model(kind: str, **overrides: Any) -> Any:
    """A tiny model, every weight of which is random: also those that start at 0 or 1."""
    architecture, sizes = ARCHITECTURES[kind]
    torch.manual_seed(0)
    model = architecture(TransformerConfig(**{**sizes, **overrides}))
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    """Draw weights large enough that a sublayer left out would show."""
    for name, parameter in model.named_parameters():
        is_norm_weight = name.endswith("norm.weight")
        nn.init.normal_(parameter, mean=float(is_norm_weight), std=0.2)


def random_tokens(*shape: int, vocab_size: int = TEXT["vocab_size"]) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(7))


def loss_of(model: Model) -> Tensor:
    """The training loss of this model on one small batch, the same each time; padding included where there can be."""
    weight = next(model.parameters())
    device = weight.device
    generator = torch.Generator().manual_seed(3)
    tokens = random_tokens(3, 9).to(device)
    mask = torch.arange(9, device=device) < torch.tensor([[9], [4], [7]], device=device)
    if isinstance(model, Decoder):
        return model.loss(tokens)
    if isinstance(model, EncoderDecoder):
        return model.loss(tokens, tokens.flip(1), mask, mask)
    if isinstance(model, VisionTransformer):
        images = torch.randn(4, 2, 8, 8, generator=generator).to(weight)
        return nn.functional.cross_entropy(model(images), torch.arange(4, device=device))
    assert isinstance(model, Encoder)
    hidden = model(tokens, mask, (tokens > 9).long())
    wanted = torch.randn(hidden.shape, generator=generator).to(weight)
    return nn.functional.mse_loss(hidden[mask], wanted[mask])


@contextlib.contextmanager
def plain_pytorch() -> Iterator[None]:
    """The models without the package's ops: each written out in plain PyTorch, in the dtype of its input."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, scale: None = None
    ) -> Tensor:
        n_shared = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(n_shared, dim=2), v.repeat_interleave(n_shared, dim=2)
        scores = torch.einsum("bshd,bthd->bhst", q, k) / q.shape[-1] ** 0.5
        visible = torch.ones_like(scores, dtype=torch.bool)
        if causal:
            visible = visible.tril()
        if mask is not None:
            visible = visible & mask
        return torch.einsum("bhst,bthd->bshd", scores.masked_fill(~visible, -torch.inf).softmax(dim=-1), v)

    def add_layer_norm(
        branch: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        assert dropout_p == 0
        return nn.functional.layer_norm(x + branch, x.shape[-1:], weight, bias, eps), x + branch

    def cross_entropy(logits: Tensor, target: Tensor, weight: None, ignored: int, smoothing: float) -> tuple[Tensor]:
        logits = logits.to(accumulate_dtype(logits.dtype))
        return (nn.functional.cross_entropy(logits, target, ignore_index=ignored, reduction="none"),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "attention", attention)
        patch.setattr(blocks, "add_layer_norm", add_layer_norm)
        patch.setattr(outputs, "cross_entropy_fwd", Mock(side_effect=cross_entropy, **{"natively.return_value": None}))
        patch.setattr(fusedformer.nn.LayerNorm, "forward", nn.LayerNorm.forward)
        patch.setattr(fusedformer.nn.GELU, "forward", nn.GELU.forward)
        yield


def torch_layers(stack: Stack, config: TransformerConfig, *, cross: bool = False) -> "TorchStack":
    """The stack as `torch.nn.TransformerEncoder`, or `TransformerDecoder` if it has cross-attention, weights copied."""
    tanh = partial(nn.functional.gelu, approximate="tanh")
    activation = tanh if config.activation == "gelu_tanh" else config.activation
    layer = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    layers = []
    for block in stack.blocks:
        theirs = layer(
            config.d_model,
            config.n_heads,
            config.d_ff,
            dropout=0.0,
            activation=activation,
            layer_norm_eps=config.norm_eps,
            batch_first=True,
            norm_first=config.norm_position == "pre",
            bias=config.bias,
        )
        assert isinstance(block, Block)
        theirs.load_state_dict(block_as_torch(block))
        layers.append(theirs)
    norm = stack.final_norm if config.norm_position == "pre" else None
    return TorchStack(layers, norm)


class TorchStack(nn.Module):
    """Layers of torch.nn one after the other; unlike `nn.TransformerEncoder`, never PyTorch's fast path."""

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), norm

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, *args, **kwargs)
        return x if self.norm is None else self.norm(x)


def block_as_torch(block: Block, pick: Callable[[nn.Parameter], Tensor] = torch.detach) -> dict[str, Tensor]:
    """The weights, or what `pick` gives of each, as `nn.TransformerEncoderLayer` or `DecoderLayer` names them."""
    parts: dict[str, tuple[nn.Module, ...]] = {
        "self_attn.in_proj_": (block.attention.qkv,),
        "self_attn.out_proj.": (block.attention.out,),
        "norm1.": (block.attention_residual.norm,),
        "linear1.": (block.feed_forward.up,),
        "linear2.": (block.feed_forward.down,),
    }
    if hasattr(block, "cross_attention"):
        cross = block.cross_attention
        parts |= {"multihead_attn.in_proj_": (cross.query, cross.key_value), "multihead_attn.out_proj.": (cross.out,)}
        parts |= {"norm2.": (block.cross_attention_residual.norm,), "norm3.": (block.feed_forward_residual.norm,)}
    else:
        parts |= {"norm2.": (block.feed_forward_residual.norm,)}
    return {
        name + kind: torch.cat([pick(dict(module.named_parameters())[kind]) for module in modules])
        for name, modules in parts.items()
        for kind in dict(modules[0].named_parameters())
    }


def assert_same_gradients(stack: Stack, theirs: TorchStack) -> None:
    """Compare the gradients that a backward pass left in the blocks of both."""
    for block, layer in zip(stack.blocks, theirs.layers, strict=True):
        assert isinstance(block, Block)
        ours = block_as_torch(block, pick=gradient)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(ours[name], gradient(parameter), rtol=1e-5, atol=1e-5, msg=name)


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
