"""What a rule of `patch` is: which modules it is for, and what they compute then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

SWITCHES = ("attention", "norms", "activations", "loss")


@dataclass(frozen=True, eq=False)
class Rule:
    """How a kind of module computes through our kernels."""

    name: str
    """Unique among rules: pickles of patched modules name it."""
    switches: tuple[str, ...]
    """The arguments of `patch`, any of which turns it on."""
    op: str
    """The op that must have a kernel where the first argument is."""
    effect: str
    """What a module gains on a GPU, for people."""
    forward: Callable[..., Any] | None = None
    """`forward(module, *args, **kwargs)` in place of the module's own; None to leave that."""
    refuse: Callable[..., str | None] | None = None
    """Why a call, of the same arguments, is not for us; None if it is."""
    unfit: Callable[[nn.Module], str | None] | None = None
    """Why a module is not for us, when it is to be patched; None if it is."""
    residual: Callable[[Any, Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None
    """Of a norm: `residual(norm, branch, stream, dropout_p)` gives the norm of their sum, and the sum."""
    residual_op: str = ""
    counts_parts: bool = False
    """Whether the modules inside count their calls, so that this one does not."""
    plain_op: str | None = None
    """What a call is counted as where there is no kernel, though its parts count else: they may not be asked then."""
    members: Mapping[str, Any] = field(default_factory=dict)
    """Further attributes of the class."""
    prepare: Callable[[], Any] | None = None
    """What a process has to have done before it unpickles such a module."""
