"""Libraries that models are compared with; timm also where torchvision, which it imports, is missing or broken.

The package index's torchvision does not work beside a PyTorch for the CPU, and no vision transformer needs it.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from torch import nn

# What timm imports of it.
TORCHVISION = (
    "torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.transforms.v2",
    "torchvision.models", "torchvision.models.feature_extraction", "torchvision.ops", "torchvision.ops.misc",
    "torchvision.datasets", "torchvision.datasets.utils", "torchvision.io", "torchvision.utils",
)  # fmt: skip


def load_library(name: str) -> Any:
    """The module of this name.

    Raises:
        ImportError: it cannot be imported.
    """
    if name != "timm":
        return importlib.import_module(name)
    with torchvision_or_stand_in():
        return importlib.import_module(name)


@contextlib.contextmanager
def torchvision_or_stand_in() -> Iterator[None]:
    """Something to import in place of a torchvision that is missing or broken.

    It is gone at the end: transformers asks whether there is a torchvision, and then uses it.
    """
    if _works():
        yield
        return
    before = _forget()
    try:
        sys.modules.update({name: _stand_in(name) for name in TORCHVISION})
        yield
    finally:
        _forget()
        sys.modules.update(before)


def _works() -> bool:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):  # the latter two from one of another PyTorch
        return False
    return True


def _forget() -> dict[str, ModuleType]:
    """Remove torchvision, or what is left of it, from the modules that are imported; what was removed."""
    names = [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    return {name: sys.modules.pop(name) for name in names}


def _stand_in(name: str) -> Any:
    module = MagicMock()
    module.__spec__, module.__path__, module.__name__ = None, [], name
    module.FrozenBatchNorm2d = nn.Module  # isinstance asks for it
    return module
