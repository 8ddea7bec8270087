"""All rules, and which of them is for a module."""

import re

from torch import nn

from fusedformer.drop_in import hugging_face_blocks, hugging_face_model, hugging_face_rules, timm_rules, torch_rules
from fusedformer.drop_in.known_source import digest
from fusedformer.drop_in.rules import Rule

_BY_SOURCE = hugging_face_rules.BY_SOURCE | hugging_face_blocks.BY_SOURCE | timm_rules.BY_SOURCE
_OF_MODELS = hugging_face_model.WITH_LOSS, hugging_face_model.PLAIN
RULES = {rule.name: rule for rule in (*torch_rules.BY_FORWARD.values(), *_BY_SOURCE.values(), *_OF_MODELS)}
_OF_INTEREST = re.compile(r"norm|attention|attn|gelu|swiglu|geglu|softmax|crossentropy", re.IGNORECASE)


def find(module: nn.Module, switches: set[str]) -> Rule | str | None:
    """The rule that one of `switches` turns on for a module; or why none does, where one would expect it; or None."""
    cls = type(module)
    if hugging_face_model.is_model(module):
        return next((rule for rule in _OF_MODELS if switches.intersection(rule.switches)), None)
    if "forward" in vars(module):
        return "its forward was replaced on the instance" if _OF_INTEREST.search(cls.__name__) else None
    rule = torch_rules.BY_FORWARD.get(cls.forward) or _BY_SOURCE.get(_sources(cls))
    if rule is None:
        is_expected = _OF_INTEREST.search(cls.__name__) and not _is_container(cls)
        return "its forward is not one that we know" if is_expected else None
    if not switches.intersection(rule.switches):
        return None
    reason = None if rule.unfit is None else rule.unfit(module)
    return rule if reason is None else reason


def _is_container(cls: type[nn.Module]) -> bool:
    return issubclass(cls, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _sources(cls: type[nn.Module]) -> tuple[str, ...]:
    """The digests of forward and of the method that it may call."""
    if cls.__module__.startswith("torch."):
        return ()
    methods = (cls.forward, *([cls._norm] if hasattr(cls, "_norm") else []))
    return tuple(str(digest(method)) for method in methods)
