"""All rules, and which of them is for a module."""

import re

from torch import nn

from fusedformer.drop_in import hugging_face_blocks, hugging_face_model, hugging_face_rules, timm_rules, torch_rules
from fusedformer.drop_in.known_source import digest
from fusedformer.drop_in.rules import Rule

_BY_SOURCE = hugging_face_rules.BY_SOURCE | hugging_face_blocks.BY_SOURCE | timm_rules.BY_SOURCE
RULES = {
    rule.name: rule for rule in (*torch_rules.BY_FORWARD.values(), *_BY_SOURCE.values(), *hugging_face_model.RULES)
}
KNOWN_VERSIONS = (
    ("transformers", "5.23", "register_transformers"),
    ("timm", "1.0.31", "drop_in.timm_layers"),
)
"""Of the libraries whose sources the rules were read from: each with its other way to our kernels."""
UNKNOWN = "its forward is not one that we know"
_NAMES = {
    "attention": "attention|attn", "norms": "norm", "activations": "gelu|glu|softmax", "loss": "crossentropy",
}  # fmt: skip


def find(module: nn.Module, switches: set[str]) -> Rule | str | None:
    """The rule that one of `switches` turns on for a module; or why none does, where one would expect it; or None."""
    cls = type(module)
    if hugging_face_model.is_model(module):
        return hugging_face_model.find(module, switches)
    if (getattr(cls.forward, "__module__", None) or "").startswith("fusedformer."):
        return None  # ours already
    if "forward" in vars(module):
        return "its forward was replaced on the instance" if _is_expected(cls, switches) else None
    rule = torch_rules.BY_FORWARD.get(cls.forward) or _BY_SOURCE.get(_sources(cls))
    if rule is None:
        if "norms" in switches and _is_block(module):
            return f"{UNKNOWN}, so its residuals stay apart from its norms"
        return UNKNOWN if _is_expected(cls, switches) else None
    if not switches.intersection(rule.switches):
        return None
    reason = None if rule.unfit is None else rule.unfit(module)
    return rule if reason is None else reason


def is_named_as(cls: type[nn.Module], switch: str) -> bool:
    """Whether the name of a class says that it is a matter of `switch`."""
    return re.search(_NAMES[switch], cls.__name__, re.IGNORECASE) is not None


def _is_block(module: nn.Module) -> bool:
    """Whether it looks like one that adds to a residual stream between norms of its own."""
    is_named_so = re.search("(Layer|Block)$", type(module).__name__) is not None
    return is_named_so and any(is_named_as(type(child), "norms") for child in module.children())


def _is_expected(cls: type[nn.Module], switches: set[str]) -> bool:
    is_container = issubclass(cls, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return not is_container and any(is_named_as(cls, switch) for switch in switches)


def _sources(cls: type[nn.Module]) -> tuple[str, ...]:
    """The digests of forward and of the method that it may call."""
    if cls.__module__.startswith("torch."):
        return ()
    methods = (cls.forward, *([cls._norm] if hasattr(cls, "_norm") else []))
    return tuple(str(digest(method)) for method in methods)
