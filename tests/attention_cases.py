"""Attention's test inputs, the naive formula they are held against, and the check of values and all gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from oracle import assert_within_budget
from torch import Tensor

from fusedformer.kernels import emulation
from fusedformer.kernels.attention.op import attention
from fusedformer.kernels.philox import philox

DIFFERENTIABLE = ("q", "k", "v", "bias", "alibi_slopes", "sinks")
SEED = 2**40 + 12345  # both words of Philox's key
FEW = 10_000  # values, all of which may come close to float64 by luck
DRAWS = 4

Inputs = dict[str, Any]  # tensors, by keyword


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one call.

    Shapes of pairs are spelled by their dimensions, b, h, q, k, or 1: "qk" is (Sq, Sk), "b1q1" is (B, 1, Sq, 1), and
    "" is (). With `packed`, pairs of lengths (of queries, of keys) of the sequences, `seqlen_q` and `seqlen_k` are the
    rows of all, an unused tail included, and `batch` is not used.
    """

    seqlen_q: int
    seqlen_k: int
    head_dim: int = 40
    heads: int = 2
    kv_heads: int = 1
    batch: int = 1
    dtype: torch.dtype = torch.float32
    head_dim_v: int | None = None
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    scale: float | None = None
    softcap: float = 0.0
    dropout_p: float = 0.0
    mask: str | None = None
    bias: str | None = None
    alibi: str | None = None  # "h" or "bh"
    sinks: bool = False
    packed: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        """A test's name: the sizes, then what differs from the default."""
        dims = f"d{self.head_dim}" + (f"v{self.head_dim_v}" if self.head_dim_v else "")
        sizes = f"b{self.batch}-{self.seqlen_q}x{self.seqlen_k}-h{self.heads}of{self.kv_heads}-{dims}"
        words = [sizes, str(self.dtype).removeprefix("torch.")]
        words += [name for name in ("causal", "sinks", "packed") if getattr(self, name)]
        settings = {name: getattr(self, name) for name in ("window", "softcap", "dropout_p")}
        words += [f"{name}{value}" for name, value in settings.items() if value]
        shapes = {name: getattr(self, name) for name in ("mask", "bias", "alibi")}
        return "-".join(words + [f"{name}_{shape}" for name, shape in shapes.items() if shape is not None])

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords of `attention` that are no tensors."""
        names = ("causal", "window", "scale", "softcap", "dropout_p")
        return {name: getattr(self, name) for name in names}

    @property
    def sequences(self) -> int:
        return len(self.packed) or self.batch

    def shape(self, dims: str) -> tuple[int, ...]:
        sizes = {"b": self.sequences, "h": self.heads, "q": self.seqlen_q, "k": self.seqlen_k, "1": 1}
        return tuple(sizes[dim] for dim in dims)


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """All tensors of the call, by the keywords of `attention`; q, k and v in bshd, or packed."""
    q, k, v = make_tensors(case, device)
    generator = torch.Generator().manual_seed(3)

    def normal(dims: str) -> Tensor:
        return torch.randn(case.shape(dims), generator=generator)

    inputs = {"q": q, "k": k, "v": v}
    if case.packed:
        inputs |= {name: x.squeeze(0) for name, x in inputs.items()}
        for name, lengths in zip(("cu_seqlens_q", "cu_seqlens_k"), zip(*case.packed)):
            inputs[name] = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    if case.bias is not None:
        bias = normal(case.bias)
        hidden = torch.rand(bias.shape, generator=generator) < (0.1 if "k" in case.bias else 0.0)
        inputs["bias"] = bias.masked_fill(hidden, -math.inf).to(device, case.dtype)
    if case.alibi is not None:
        inputs["alibi_slopes"] = (0.2 * normal(case.alibi).abs()).to(device, case.dtype)
    if case.sinks:
        inputs["sinks"] = normal("h").to(device, case.dtype)
    if case.dropout_p:
        inputs["seed"] = torch.tensor([SEED], device=device)
    if case.mask is not None:
        inputs["mask"] = make_mask(case, device)
    return inputs


def make_tensors(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in bshd."""
    generator = torch.Generator().manual_seed(0)

    def normal(length: int, heads: int, head_dim: int) -> Tensor:
        shape = (1 if case.packed else case.batch, length, heads, head_dim)
        return torch.randn(shape, generator=generator).to(device, case.dtype)

    queries = normal(case.seqlen_q, case.heads, case.head_dim)
    keys = normal(case.seqlen_k, case.kv_heads, case.head_dim)
    return queries, keys, normal(case.seqlen_k, case.kv_heads, case.head_dim_v or case.head_dim)


def make_mask(case: Case, device: torch.device) -> Tensor:
    """A random mask; where it has rows of its own, the first and the last of them are empty."""
    assert case.mask is not None
    shape = case.shape(case.mask)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    if mask.dim() > 1 and mask.shape[-2] > 2:
        mask[..., [0, -1], :] = False
    return mask.to(device)


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, *,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None, alibi_slopes: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, Sq, H, Dv) and log-sum-exp (B, H, Sq), as a textbook writes them, in the dtype of the inputs."""
    if cu_seqlens_q is None:
        return _naive(q, k, v, alibi_slopes=alibi_slopes, **settings)
    assert cu_seqlens_k is not None
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    outs, lses = [], []
    for index in range(len(starts_q) - 1):
        rows, keys = slice(*starts_q[index : index + 2]), slice(*starts_k[index : index + 2])
        is_own = alibi_slopes is not None and alibi_slopes.dim() == 2
        slopes = alibi_slopes[index : index + 1] if is_own and alibi_slopes is not None else alibi_slopes
        out, lse = _naive(q[None, rows], k[None, keys], v[None, keys], alibi_slopes=slopes, index=index, **settings)
        outs.append(out[0])
        lses.append(lse[0])
    tail = len(q) - starts_q[-1]
    outs.append(q.new_zeros((tail, q.shape[1], v.shape[2])))
    lses.append(q.new_zeros((q.shape[1], tail)))
    return torch.cat(outs), torch.cat(lses, 1)


def _naive(
    q: Tensor, k: Tensor, v: Tensor, *,
    causal: bool = False, window: tuple[int | None, int | None] | None = None, scale: float | None = None,
    softcap: float = 0.0, dropout_p: float = 0.0, mask: Tensor | None = None, bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None, sinks: Tensor | None = None, seed: Tensor | None = None, index: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, seqlen_q, heads, head_dim = q.shape
    group, seqlen_k = heads // k.shape[2], k.shape[1]
    q, k, v = q.transpose(1, 2), *(x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(head_dim) if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(seqlen_q, device=q.device)[:, None], torch.arange(seqlen_k, device=q.device)
    offset = j - i - (seqlen_k - seqlen_q)  # of a key from the one that the query faces
    visible = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        visible = visible & mask
    if bias is not None:
        scores, visible = scores + bias.to(scores.dtype), visible & (bias != -math.inf)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.expand(batch, heads)[..., None, None] * offset.abs()
    left, right = window or (None, None)
    if causal:
        visible = visible & (offset <= 0)
    if right not in (None, -1):
        visible = visible & (offset <= right)
    if left not in (None, -1):
        visible = visible & (-offset <= left)
    scores = scores.masked_fill(~visible, -math.inf)
    sink = scores.new_zeros(0) if sinks is None else sinks[None, :, None, None].expand(batch, heads, seqlen_q, 1)
    blind = ~visible.any(-1, keepdim=True) & (sinks is None)
    # A row of -inf alone has no softmax; 0 stands in, and is taken out again.
    scores = (scores if sinks is None else torch.cat([scores, sink], -1)).masked_fill(blind, 0.0)
    weights = torch.softmax(scores, -1)[..., :seqlen_k].masked_fill(blind, 0.0)
    if dropout_p:
        assert seed is not None
        pairs = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1) + index * heads
        chance = (philox(seed, j, i, pairs) >> 8).double() / 2**24
        weights = weights * (chance >= torch.tensor(dropout_p).double()) / (1 - dropout_p)
    return (weights @ v).transpose(1, 2), scores.logsumexp(-1).masked_fill(blind.squeeze(-1), -math.inf)


def check(case: Case, device: torch.device) -> None:
    """Hold out, log-sum-exp and the gradients of all inputs through both of them against float64."""
    check_inputs(case, make_inputs(case, device))


def check_inputs(case: Case, inputs: Inputs, *, through_lse: bool = True) -> None:
    """`check` of tensors that have strides of their own; without `through_lse` gradients come through out alone."""

    def ours(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        return attention(**inputs, **case.settings, return_lse=True)

    def naive(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        return naive_attention(**inputs, **case.settings)

    def reachable(name: str) -> Tensor:
        """Plain PyTorch's result; of a gradient with few values the worst of several, as one may come close by luck."""
        if exact[0][name].numel() > FEW or not name.startswith("d"):
            return plain[0][name]
        errors = [(mine[name] - true[name]) for mine, true in zip(plain, exact)]
        return exact[0][name] + max(errors, key=lambda error: error.abs().max().item() if error.numel() else 0)

    got = run(ours, inputs, through_lse=through_lse)
    seeds = range(DRAWS if min(x.numel() for x in got.values()) <= FEW else 1)
    double = _cast(inputs, torch.float64)
    exact = [run(naive, double, case.dtype, through_lse=through_lse, seed=seed) for seed in seeds]
    plain = [run(naive, inputs, through_lse=through_lse, seed=seed) for seed in seeds]
    assert (got["out"].dtype, got["lse"].dtype) == (case.dtype, torch.float32)
    if emulation.is_active() or inputs["q"].is_cuda:  # ours is float32 from the scores on, ATen's for the CPU is not
        plain[0]["lse"] = naive(**_cast(inputs, torch.float32))[1]
    for name, value in got.items():
        assert_within_budget(name, value, exact[0][name], reachable(name), gradient=name.startswith("d"))


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    inputs: Inputs,
    rounded_to: torch.dtype | None = None,
    *,
    through_lse: bool = True,
    seed: int = 0,
) -> Inputs:
    """out, lse, and the gradients of `inputs` for random gradients of both, rounded to the judged dtype."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items() if name in DIFFERENTIABLE}
    out, lse = function(**(inputs | leaves))
    generator = torch.Generator().manual_seed(10 + seed)
    dout, dlse = (torch.randn(x.shape, generator=generator).to(x.device) for x in (out, lse))
    if "cu_seqlens_q" in inputs:  # what belongs to no sequence has no log-sum-exp
        dlse[:, inputs["cu_seqlens_q"][-1] :] = 0
    grads = dout.to(rounded_to or inputs["q"].dtype).to(out.dtype), dlse.to(lse.dtype)
    results, wanted = ((out, lse), grads) if through_lse else ((out,), grads[:1])
    found = torch.autograd.grad(results, list(leaves.values()), wanted)
    return {"out": out, "lse": lse} | {f"d{name}": x for name, x in zip(leaves, found, strict=True)}
