"""What CONTRIBUTING.md and README.md name exists: files, lists in them, extras; and what is imported is declared."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fusedformer"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ENDINGS = (".py", ".cu", ".cpp", ".h", ".md", ".txt", "/")


def named_files(text: str) -> list[str]:
    """The paths in backticks; softmax stands for <op>."""
    named = re.findall(r"`([\w<][\w./<>]*)`", text)
    return sorted({name.replace("<op>", "softmax") for name in named if name.endswith(ENDINGS)})


def test_files_are_found_in_the_text() -> None:
    assert {"csrc/softmax.cu", "kernels/library.py", "tests/test_planted_bugs.py"} <= set(named_files(CONTRIBUTING))


@pytest.mark.parametrize("name", named_files(CONTRIBUTING))
def test_named_files_exist(name: str) -> None:
    # Written as the links at the top level show them; a checkout may lack the links.
    assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"CONTRIBUTING.md names {name}"


@pytest.mark.parametrize(
    ("constant", "name"),
    [
        ("TRITON_OPS", "src/fusedformer/benchmarks/static/collect.py"),
        ("OPS", "src/fusedformer/benchmarks/ops.py"),
    ],
)
def test_named_lists_exist(constant: str, name: str) -> None:
    assert f"`{constant}`" in CONTRIBUTING
    assert re.search(rf"^{constant} = ", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_extras_in_the_readme_exist() -> None:
    named = {extra for extras in re.findall(r"'\.\[([\w,]+)\]'", README) for extra in extras.split(",")}
    assert "examples" in named
    table = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert named <= set(re.findall(r"^(\w+) = \[", table, flags=re.MULTILINE))


def test_what_the_package_imports_everywhere_is_declared() -> None:
    (dependencies,) = re.findall(r"^dependencies = (\[.*\])$", PYPROJECT, flags=re.MULTILINE)
    declared = set(re.findall(r'"(\w+)', dependencies))
    folders = ("", "kernels", "transformer")
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in (PACKAGE / folder).glob("*.py")]
    # At the left margin: an import inside a function, or in a `try`, may be of an extra.
    imported = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(sources), flags=re.MULTILINE))
    assert imported - sys.stdlib_module_names - {"fusedformer"} <= declared
