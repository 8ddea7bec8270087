"""`torch.nn.MultiheadAttention` through our attention, whatever it is asked for.

Legend: N batch, L queries, S keys, H heads, D = E / H, Ek and Ev widths of keys and values.

PyTorch's own leaves its fused kernels for the scores of all heads, N H L S, as soon as weights are wanted, which is its
default. Here the output never waits for them: they follow from the log-sum-exp that attention gives, one head at a time
where their mean is wanted, so that N L S is what they cost, and nothing of them is kept for a backward nobody asks for.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.kernels import library
from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.attention.op import attend

_CALL = Call("MultiheadAttention", "query", "key", "value", "attn_mask", "attn_mask")


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` through `fusedformer.attention`, with or without weights.

    A query that sees no key gives 0, where PyTorch gives NaN. With dropout the weights are those before it, which the
    dropped ones have as their mean.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of `query` to `key` and `value`, and its weights.

        Args:
            query: (L, N, E), with `batch_first` (N, L, E), or without a batch (L, E).
            key: (S, N, Ek), (N, S, Ek) or (S, Ek).
            value: (S, N, Ev), (N, S, Ev) or (S, Ev).
            key_padding_mask: (N, S), or (S,) without a batch: bool, where True hides a key, or added to the scores.
            need_weights: return the weights too.
            attn_mask: (L, S) or (N H, L, S): bool, where True hides, or added to the scores.
            average_attn_weights: return the mean of the weights over heads.
            is_causal: says that `attn_mask`, which has to be given, hides key j from query i where j > i, and nothing
                else; taken at its word.

        Returns:
            The output, of query's shape, and None or the weights: their mean (N, L, S), or (N, H, L, S); no N without
            a batch.

        Raises:
            ValueError: shapes, dtypes or devices do not fit, or `is_causal` without `attn_mask`.
        """
        _check(self, query, key, value, attn_mask, is_causal)
        is_batched = query.dim() == 3
        q, k, v = (_batch_first(self, x) for x in _projections(self, query, key, value))
        n_keys = k.shape[1]
        k, v = _with_further_keys(self, k, v)
        n_further = k.shape[1] - n_keys
        causal = is_causal and n_further == 0  # the further keys are visible to all queries
        masks = {
            "attn_mask": None if causal else _of_pairs(self, attn_mask, q.shape[0], q.shape[1], n_keys),
            "key_padding_mask": _of_keys(key_padding_mask, q.shape[0], n_keys),
        }
        mask, bias = _mask_and_bias(masks, n_further)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))
        dropout_p = self.dropout if self.training else 0.0
        out, lse = attend(_CALL, q, k, v, mask=mask, bias=bias, causal=causal, dropout_p=dropout_p, bottom_right=False)
        out = F.linear(out.flatten(-2), self.out_proj.weight, self.out_proj.bias)
        weights = None
        if need_weights:
            weights = _weights(q, k, lse, mask, bias, causal, average=average_attn_weights).to(out.dtype)
            weights = weights if is_batched else weights.squeeze(0)
        if not is_batched:
            return out.squeeze(0), weights
        return out if self.batch_first else out.transpose(0, 1), weights


def _check(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> None:
    named = {"query": query, "key": key, "value": value}
    for (name, x), width in zip(named.items(), (module.embed_dim, module.kdim, module.vdim), strict=True):
        library.check_tensor("MultiheadAttention", name, x)
        if x.dim() not in (2, 3) or x.dim() != query.dim():
            shapes = ", ".join(f"{name} has shape {tuple(x.shape)}" for name, x in named.items())
            raise _CALL.error(f"{shapes}: expected two dimensions each, or three")
        if x.shape[-1] != width:
            raise _CALL.error(f"{name} has {x.shape[-1]} features, expected {width}")
    if key.shape[:-1] != value.shape[:-1]:
        raise _CALL.error(f"key has shape {tuple(key.shape)}, value {tuple(value.shape)}: expected as many of each")
    if is_causal and attn_mask is None:
        raise _CALL.error("is_causal is True and attn_mask is None: it says what attn_mask holds, and needs one")


def _projections(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, each (..., E), in as few products as they allow."""
    weight, bias, width = module.in_proj_weight, module.in_proj_bias, module.embed_dim
    if weight is None:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))
    if query is key is value:
        return F.linear(query, weight, bias).chunk(3, -1)
    biases = (None,) * 2 if bias is None else bias.split([width, 2 * width])
    q_weight, kv_weight = weight.split([width, 2 * width])
    q = F.linear(query, q_weight, biases[0])
    if key is value:
        return q, *F.linear(key, kv_weight, biases[1]).chunk(2, -1)
    biases = (None,) * 2 if bias is None else biases[1].chunk(2)
    return q, *map(F.linear, (key, value), kv_weight.chunk(2), biases)


def _batch_first(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(N, S, E), a view."""
    if x.dim() == 2:
        return x.unsqueeze(0)
    return x if module.batch_first else x.transpose(0, 1)


def _with_further_keys(module: nn.MultiheadAttention, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with the learned one and with zeros behind them, where the module has them."""
    if module.bias_k is not None and module.bias_v is not None:
        k, v = (torch.cat([x, row.expand(len(x), 1, -1).to(x.dtype)], 1)
                for x, row in ((k, module.bias_k), (v, module.bias_v)))  # fmt: skip
    if module.add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return k, v


def _of_pairs(module: nn.MultiheadAttention, mask: Tensor | None, batch: int, queries: int, keys: int) -> Tensor | None:
    """`attn_mask` as (1, 1, L, S) or (N, H, L, S)."""
    if mask is None:
        return None
    library.check_tensor("MultiheadAttention", "attn_mask", mask)
    if mask.shape == (queries, keys):
        return mask[None, None]
    shape = (batch * module.num_heads, queries, keys)
    if mask.shape != shape:
        raise _CALL.error(f"attn_mask has shape {tuple(mask.shape)}, expected {shape[1:]} or {shape}")
    return mask.unflatten(0, (batch, module.num_heads))


def _of_keys(mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """`key_padding_mask` as (N, 1, 1, S)."""
    if mask is None:
        return None
    library.check_tensor("MultiheadAttention", "key_padding_mask", mask)
    if mask.shape != (batch, keys) and (batch, *mask.shape) != (1, keys):
        raise _CALL.error(f"key_padding_mask has shape {tuple(mask.shape)}, expected {(batch, keys)}")
    return mask.reshape(batch, 1, 1, keys)


def _mask_and_bias(masks: dict[str, Tensor | None], n_further: int) -> tuple[Tensor | None, Tensor | None]:
    """The boolean ones as one mask, where True takes part, and the others as one bias; further keys are visible."""
    mask = bias = None
    for name, given in masks.items():
        if given is None:
            continue
        given = F.pad(given, (0, n_further)) if n_further else given
        if given.dtype == torch.bool:
            mask = ~given if mask is None else mask & ~given
        elif given.is_floating_point():
            bias = given if bias is None else bias + given
        else:
            raise _CALL.error(f"{name} is {library.short(given.dtype)}, expected bool or floating point")
    return mask, bias


def _weights(
    q: Tensor, k: Tensor, lse: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool, *, average: bool
) -> Tensor:
    """exp(scores - log-sum-exp) of all heads, (N, H, L, S), or their mean, (N, L, S), from q and k (N, S, H, D)."""
    heads = q.shape[2]
    hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1) if causal else None

    def of_heads(first: int, last: int) -> Tensor:
        scores = torch.einsum("nlhd,nshd->nhls", q[:, :, first:last], k[:, :, first:last]).to(lse.dtype)
        scores = scores / math.sqrt(q.shape[-1])
        if bias is not None:
            scores = scores + (bias if bias.shape[1] == 1 else bias[:, first:last])
        if mask is not None:
            scores = scores.masked_fill(~(mask if mask.shape[1] == 1 else mask[:, first:last]), -math.inf)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        total = lse[:, first:last, :, None]
        return (scores - total.masked_fill(total == -math.inf, 0.0)).exp()  # a query without keys has weights of 0

    if not average:
        return of_heads(0, heads)
    mean = of_heads(0, 1).squeeze(1)
    for head in range(1, heads):
        mean = mean + of_heads(head, head + 1).squeeze(1)
    return mean / heads
