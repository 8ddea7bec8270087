"""What CONTRIBUTING.md says is so: the files that it names exist, and so do the names that it gives in them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fusedformer"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ENDINGS = (".py", ".cu", ".cpp", ".h", ".md", ".txt", "/")


def named_files(text: str) -> list[str]:
    """The paths in backticks; softmax stands for <op>."""
    named = re.findall(r"`([\w<][\w./<>]*)`", text)
    return sorted({name.replace("<op>", "softmax") for name in named if name.endswith(ENDINGS)})


def test_files_are_found_in_the_text() -> None:
    assert {"csrc/softmax.cu", "kernels/library.py", "tests/conftest.py", "csrc/"} <= set(named_files(CONTRIBUTING))


@pytest.mark.parametrize("name", named_files(CONTRIBUTING))
def test_named_files_exist(name: str) -> None:
    # Written as the links at the top level show them; a checkout may lack the links.
    assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"CONTRIBUTING.md names {name}"


@pytest.mark.parametrize(
    ("constant", "name"),
    [
        ("TRITON_OPS", "src/fusedformer/benchmarks/static/collect.py"),
        ("CSRC_OPS", "tests/conftest.py"),
        ("OPS", "src/fusedformer/benchmarks/ops.py"),
    ],
)
def test_named_lists_exist(constant: str, name: str) -> None:
    assert f"`{constant}`" in CONTRIBUTING
    assert re.search(rf"^{constant} = ", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
