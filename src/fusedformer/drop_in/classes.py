"""Classes of patched modules: a subclass of the module's own class, whose forward may go through our kernels.

A module is patched by giving it such a class, and by nothing else: parameters, buffers, hooks and whatever refers to
the module stay as they are, and `isinstance` holds. The class has the name of the module's own, which libraries look
modules up by, and is remade from that and from its rule when a module is copied or unpickled.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from fusedformer.drop_in import calls, routing
from fusedformer.drop_in.rules import Rule


class Patched:
    """What classes of patched modules have in common."""

    fused_rule: ClassVar[Rule]
    fused_original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        make, args, *rest = reduced
        if args != (type(self),):  # the class has a way of its own to be remade
            return make, args, *rest
        return _remake, (self.fused_original, self.fused_rule.name), *rest


def _remake(original: type[nn.Module], rule_name: str) -> nn.Module:
    from fusedformer.drop_in.registry import RULES  # which imports all rules, and they this file

    rule = RULES[rule_name]
    if rule.prepare is not None:
        rule.prepare()
    cls = patched_class(original, rule)
    return cls.__new__(cls)


_classes: dict[tuple[Any, Rule], type[nn.Module]] = {}


def patched_class(original: Any, rule: Rule) -> type[nn.Module]:
    """The class of modules of class `original` that are patched by `rule`."""
    if (original, rule) not in _classes:
        _classes[original, rule] = _make_class(original, rule)
    return _classes[original, rule]


def _make_class(original: Any, rule: Rule) -> type[nn.Module]:
    members = {
        "__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__,
        "fused_rule": rule, "fused_original": original, **rule.members,
    }  # fmt: skip
    if rule.forward is not None:
        members["forward"] = _forward(original.forward, rule, rule.forward)
    return type(original.__name__, (Patched, original), members)


def _forward(original: Callable[..., Any], rule: Rule, ours: Callable[..., Any]) -> Callable[..., Any]:
    """`ours` where a kernel computes the call, `original` where not; either is counted."""
    op, refuse, counts_parts = rule.op, rule.refuse, rule.counts_parts
    plain_op = rule.plain_op if counts_parts else op

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next((given for given in kwargs.values() if isinstance(given, Tensor)), None)
        if not isinstance(x, Tensor):
            calls.fell_back(self, op, f"the first argument is {type(x).__name__}, not a tensor")
            return original(self, *args, **kwargs)
        if not routing.has_kernel(op, x):
            if plain_op is not None:
                calls.served(self, plain_op, x)
            return original(self, *args, **kwargs)
        reason = routing.refusal(self, x)
        if reason is None and refuse is not None:
            reason = refuse(self, *args, **kwargs)
        if reason is not None:
            calls.fell_back(self, op, reason)
            return original(self, *args, **kwargs)
        if not counts_parts:
            calls.served(self, op, x)
        return ours(self, *args, **kwargs)

    return forward
