"""The residual before a norm, and dropout before that, in one pass with it, where a forward that we know has them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedformer.drop_in import calls, routing
from fusedformer.drop_in.classes import Patched
from fusedformer.kernels import library
from fusedformer.nn.transformer_layers import why_not_in_one_pass


def add_norm(
    owner: nn.Module, norm: nn.Module, branch: Tensor, stream: Tensor, dropout: nn.Module | float = 0.0
) -> tuple[Tensor, Tensor]:
    """The norm of s = stream + dropout(branch), and s; counted as a call of `owner`.

    `dropout` is the module for it, or its probability while `owner` is trained. Step by step where the norm is not
    patched, or has hooks that want to see its input.
    """
    dtype = torch.promote_types(branch.dtype, stream.dtype)
    reason = _why_not(norm, branch, stream, dropout, dtype)
    if reason is not None:
        calls.fell_back(owner, "residual with norm", reason)
        s = stream + (dropout(branch) if isinstance(dropout, nn.Module) else F.dropout(branch, dropout, owner.training))
        return norm(s), s
    rule: Any = norm.fused_rule
    calls.served(owner, rule.residual_op, stream)
    probability, is_on = (dropout.p, dropout.training) if isinstance(dropout, nn.Dropout) else (dropout, owner.training)
    p = probability if is_on else 0.0
    return rule.residual(norm, branch.to(dtype), stream.to(dtype), p)


def _why_not(
    norm: nn.Module, branch: Tensor, stream: Tensor, dropout: nn.Module | float, dtype: torch.dtype
) -> str | None:
    rule = norm.fused_rule if isinstance(norm, Patched) else None
    if rule is None or rule.residual is None:
        return "the norm is not one that has its residual in one pass"
    if (reason := why_not_in_one_pass(norm, dropout if isinstance(dropout, nn.Module) else None)) is not None:
        return reason
    if branch.shape != stream.shape:
        return f"shapes {tuple(branch.shape)} and {tuple(stream.shape)} broadcast"
    if routing.autocast(rule.op, stream).dtype != dtype:
        return f"autocast wants the norm of {library.short(dtype)} in float32"
    # As the norm would see it; asked of branch and stream both, for either may be a subclass.
    reason = routing.refusal(norm, branch) or routing.refusal(norm, stream)
    if reason is None and rule.refuse is not None:
        reason = rule.refuse(norm, stream if stream.dtype == dtype else branch)
    return reason
