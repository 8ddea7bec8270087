"""Attention's test inputs, the naive formula they are held against, and the check of values and all gradients."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from oracle import assert_within_budget
from torch import Tensor

from fusedformer.kernels import emulation
from fusedformer.kernels.attention import attention


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one call; `mask` is the shape of a random mask."""

    seqlen_q: int
    seqlen_k: int
    head_dim: int = 40
    heads: int = 2
    kv_heads: int = 1
    batch: int = 1
    dtype: torch.dtype = torch.float32
    causal: bool = False
    mask: tuple[int, ...] | None = None
    scale: float | None = None

    def __str__(self) -> str:
        """A test's name: the sizes, then what differs from the default."""
        sizes = f"b{self.batch}-{self.seqlen_q}x{self.seqlen_k}-h{self.heads}of{self.kv_heads}-d{self.head_dim}"
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([sizes, dtype, *["causal"] * self.causal, *(["mask"] if self.mask else [])])


def make_tensors(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in bshd."""
    generator = torch.Generator().manual_seed(0)

    def normal(length: int, heads: int) -> Tensor:
        values = torch.randn((case.batch, length, heads, case.head_dim), generator=generator)
        return values.to(device, case.dtype)

    queries = normal(case.seqlen_q, case.heads)
    return queries, normal(case.seqlen_k, case.kv_heads), normal(case.seqlen_k, case.kv_heads)


def make_mask(case: Case, device: torch.device) -> Tensor | None:
    """A random mask; where it has rows of its own, the first and the last of them are empty."""
    if case.mask is None:
        return None
    mask = torch.rand(case.mask, generator=torch.Generator().manual_seed(1)) < 0.4
    if mask.dim() > 1 and mask.shape[-2] > 2:
        mask[..., [0, -1], :] = False
    return mask.to(device)


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """out (B, Sq, H, D) and log-sum-exp (B, H, Sq), as a textbook writes them, in the dtype of the inputs."""
    group = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), *(x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    visible = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    if causal:
        visible = visible.tril(k.shape[2] - q.shape[2])
    blind = ~visible.any(-1, keepdim=True)
    scores = scores.masked_fill(~visible, -math.inf).masked_fill(blind, 0.0)
    out = torch.softmax(scores, -1).masked_fill(blind, 0.0) @ v
    return out.transpose(1, 2), scores.logsumexp(-1).masked_fill(blind.squeeze(-1), -math.inf)


def check(case: Case, device: torch.device) -> None:
    """Hold out, log-sum-exp and the gradients of q, k and v through both of them against float64."""
    check_tensors(case, make_tensors(case, device), make_mask(case, device))


def check_tensors(
    case: Case, tensors: Sequence[Tensor], mask: Tensor | None = None, *, through_lse: bool = True
) -> None:
    """`check` of tensors that have strides of their own; without `through_lse` gradients come through out alone."""
    settings: dict[str, Any] = {"causal": case.causal, "mask": mask, "scale": case.scale}

    def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return attention(*tensors, **settings, return_lse=True)

    def naive(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return naive_attention(*tensors, **settings)

    out, lse, *grads = run(ours, tensors, through_lse=through_lse)
    exact, exact_lse, *exact_grads = run(
        naive, [x.double() for x in tensors], case.dtype, through_lse=through_lse
    )
    plain, plain_lse, *plain_grads = run(naive, tensors, through_lse=through_lse)
    assert (out.dtype, lse.dtype) == (case.dtype, torch.float32)
    assert_within_budget("out", out, exact, plain)
    if emulation.is_active() or tensors[0].is_cuda:  # ours is float32 from the scores on, ATen's for the CPU is not
        plain_lse = naive(*(x.float() for x in tensors))[1]
    assert_within_budget("lse", lse, exact_lse, plain_lse)
    for name, got, want, reachable in zip(("dq", "dk", "dv"), grads, exact_grads, plain_grads, strict=True):
        assert_within_budget(name, got, want, reachable, gradient=True)


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: Sequence[Tensor],
    rounded_to: torch.dtype | None = None,
    *,
    through_lse: bool = True,
) -> list[Tensor]:
    """out, log-sum-exp, and the gradients of `tensors` for random gradients of both, rounded to the judged dtype."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    results = function(*leaves)
    generator = torch.Generator().manual_seed(2)
    dout, dlse = (torch.randn(x.shape, generator=generator).to(x.device) for x in results)
    grads = dout.to(rounded_to or tensors[0].dtype).to(results[0].dtype), dlse.to(results[1].dtype)
    wanted = 2 if through_lse else 1
    return [*results, *torch.autograd.grad(results[:wanted], leaves, grads[:wanted])]
