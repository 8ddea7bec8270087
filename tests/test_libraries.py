"""timm where torchvision is missing or broken: what stands in for it is gone when timm is there."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fusedformer.benchmarks.harness import libraries
from fusedformer.benchmarks.harness.libraries import torchvision_or_stand_in


def torchvision_modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "torchvision"]


@pytest.mark.parametrize("error", [None, "RuntimeError('operator torchvision::nms does not exist')", "ImportError()"])
def test_it_stands_in_for_one_that_does_not_work(
    error: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in torchvision_modules():
        monkeypatch.delitem(sys.modules, name)
    if error is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    else:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(f"import torchvision.io\nraise {error}\n")
        (tmp_path / "torchvision" / "io.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
    before = set(torchvision_modules())
    with torchvision_or_stand_in():
        assert isinstance(importlib.import_module("torchvision.ops.misc").FrozenBatchNorm2d, type)
        assert importlib.import_module("torchvision.transforms").Compose
    left = set(torchvision_modules()) - before
    assert left <= {"torchvision.io"}  # what the broken one had imported itself


def test_one_that_works_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in torchvision_modules():
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision.py").write_text("VERSION = 'real'")
    monkeypatch.syspath_prepend(str(tmp_path))
    with torchvision_or_stand_in():
        assert importlib.import_module("torchvision").VERSION == "real"
    assert torchvision_modules() == ["torchvision"]
    del sys.modules["torchvision"]


def test_timm_leaves_nothing_that_transformers_would_find() -> None:
    """In a process of its own, for here both may have been imported before."""
    pytest.importorskip("transformers")
    code = """
        import sys
        from fusedformer.benchmarks.harness.libraries import load_library
        try:
            load_library("timm")
        except ImportError:
            print("no timm")
            sys.exit()
        from importlib.util import find_spec
        from transformers.utils import is_torchvision_available
        print(is_torchvision_available() and find_spec("torchvision") is None)
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    found = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout.strip()
    if found == "no timm":
        pytest.skip("timm is not installed")
    assert found == "False"


def test_a_library_that_is_not_there() -> None:
    with pytest.raises(ImportError):
        libraries.load_library("no_such_library_anywhere")
