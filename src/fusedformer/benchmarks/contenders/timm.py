"""timm, where torchvision does not work: the package index has none for a PyTorch that is for the CPU alone.

timm imports torchvision for its data sets, transforms and detection, none of which its vision transformers use.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import MagicMock

from torch import nn

_IMPORTED = (
    "", ".transforms", ".transforms.functional", ".transforms.v2", ".models", ".models.feature_extraction", ".ops",
    ".ops.misc", ".datasets", ".datasets.utils", ".io", ".utils",
)  # fmt: skip


def import_timm() -> ModuleType:
    """timm. Torchvision is as absent, or as broken, afterwards as it was before.

    Raises:
        ImportError: timm is not installed, or something else that it imports.
    """
    if "timm" in sys.modules:
        return importlib.import_module("timm")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # the latter where it is of another PyTorch
        with _instead_of_torchvision():
            return importlib.import_module("timm")
    return importlib.import_module("timm")


@contextlib.contextmanager
def _instead_of_torchvision() -> Iterator[None]:
    modules = {}
    for name in _IMPORTED:
        modules[f"torchvision{name}"] = module = MagicMock()
        module.__spec__, module.__path__, module.__name__ = None, [], f"torchvision{name}"
    # Models are asked whether they are one.
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)
