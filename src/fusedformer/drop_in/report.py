"""What `patch` has done to a model, and what its calls came to."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fusedformer.drop_in import calls, routing
from fusedformer.drop_in.calls import Calls
from fusedformer.kernels import emulation
from fusedformer.kernels.explain import implementation


@dataclass(frozen=True)
class Replaced:
    """One module that computes through our kernels now."""

    path: str
    kind: str
    rule: str
    effect: str


@dataclass(frozen=True)
class Left:
    """One module that computes as before, though its class would make one expect otherwise."""

    path: str
    kind: str
    reason: str


@dataclass
class PatchReport:
    """What `patch` did. As a context manager it takes that back, and nothing that was done before it."""

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    device: str
    already_patched: int
    undo: Callable[[], None] = field(repr=False)

    def __enter__(self) -> "PatchReport":
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()

    @property
    def expected_effect(self) -> str:
        """What to expect of the device that the model is on; no time is promised."""
        if self.device == "cuda":
            missing = sorted(op for op in routing.OPS if not routing.has_cuda_kernel(op))
            kernels = "kernels compute what was replaced"
            return kernels if not missing else f"{kernels}, but PyTorch {', '.join(missing)}: see `fusedformer doctor`"
        if emulation.is_active():
            return "the device code is emulated: for tests, and slow"
        return f"none on {self.device or 'no device'}: PyTorch computes as before; on a GPU, kernels do"

    def __str__(self) -> str:
        replaced = Counter((each.kind, each.rule, each.effect) for each in self.replaced)
        left = Counter((each.kind, each.reason) for each in self.left)
        lines = [f"replaced {len(self.replaced)} modules, left {len(self.left)}"]
        if self.already_patched:
            lines[0] += f", {self.already_patched} were patched before"
        lines += [f"  {count} x {kind} -> {rule}: {effect}" for (kind, rule, effect), count in replaced.items()]
        lines += [f"  left {count} x {kind}: {reason}" for (kind, reason), count in left.items()]
        return "\n".join([*lines, f"expected effect: {self.expected_effect}"])


@dataclass(frozen=True)
class Served:
    """Calls of one op that one implementation computed."""

    op: str
    implementation: str
    calls: int


@dataclass(frozen=True)
class Fallback:
    """Calls of one op that PyTorch computed in our place."""

    op: str
    reason: str
    calls: int


@dataclass(frozen=True)
class CallReport:
    """Calls since a model was patched, or since its counts were last forgotten."""

    served: tuple[Served, ...]
    fallbacks: tuple[Fallback, ...]

    def __str__(self) -> str:
        lines = [f"{each.op}: {each.calls} calls by {each.implementation}" for each in self.served]
        lines += [f"{each.op}: {each.calls} calls left to PyTorch: {each.reason}" for each in self.fallbacks]
        return "\n".join(lines) or "no call has been counted (inside graphs of torch.compile none is)"


def report(model: nn.Module) -> CallReport:
    """How many calls each op served in `model`, by which implementation, and each fallback, with its reason and count.

    Counted are modules that `patch` has replaced, attention by `register_transformers`, and calls of PyTorch's own
    attention that `register_torch` took over, which are of the whole process, for they do not tell who called. What
    runs inside a graph of `torch.compile` is not counted.

    Raises:
        ValueError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"report: model is {type(model).__name__}, expected a torch.nn.Module")
    return of_calls(calls.of([*model.modules(), None]))


def of_calls(counted: Calls) -> CallReport:
    """`counted`, in words, the most frequent first."""
    served: Counter[tuple[str, str]] = Counter()
    for (op, device, is_emulated), count in counted.served.items():
        served[op, _implementation(op, device, is_emulated)] += count
    return CallReport(
        tuple(Served(*key, count) for key, count in served.most_common()),
        tuple(Fallback(*key, count) for key, count in counted.fallbacks.most_common()),
    )


def _implementation(op: str, device: torch.device, is_emulated: bool) -> str:
    if op not in routing.OPS:  # a layer that PyTorch computed whole
        return f"plain PyTorch on {device.type}"
    return implementation(f"{op}_fwd", device, is_emulated=is_emulated)[0]
