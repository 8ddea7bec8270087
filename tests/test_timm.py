"""Equal to timm's vision transformers, random weights copied over: outputs in float32 to 1e-5."""

import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from fusedformer.transformer.huggingface.load import from_huggingface

TORCHVISION = (
    "", ".transforms", ".transforms.functional", ".transforms.v2", ".models", ".models.feature_extraction", ".ops",
    ".ops.misc", ".datasets", ".datasets.utils", ".io", ".utils",
)  # fmt: skip


@pytest.fixture(scope="module")
def timm() -> Any:
    """timm, with something in place of torchvision: the index's does not work beside a PyTorch for the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TORCHVISION:
            module: Any = MagicMock(spec=ModuleType)
            module = MagicMock()
            module.__spec__, module.__path__, module.__name__ = None, [], f"torchvision{name}"
            patch.setitem(sys.modules, f"torchvision{name}", module)
        sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = nn.Module  # type: ignore[attr-defined]  # it is asked for by isinstance
        yield pytest.importorskip("timm", reason="timm is not installed")
