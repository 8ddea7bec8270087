"""What CONTRIBUTING.md and README.md name exists: files, lists in them, extras; and what is imported is declared."""

import json
import re
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fusedformer"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ENDINGS = (".py", ".cu", ".cpp", ".h", ".md", ".txt", "/")


# Rates, times and speed-ups: what only a measurement, or a model that is named as one, can say.
FIGURE = re.compile(r"\b(\d[\d.,]*) ?(TFLOP/s|GB/s|TB/s|us|µs|ms|x faster|times faster|times as fast)")


def unfounded(text: str, measured: Collection[float]) -> list[str]:
    """The figures in statements that do not say "predicted" or "modelled", and that no measurement rounds to."""
    told = [part for part in statements(text) if not re.search(r"\b(predicted|modelled)\b", part)]
    found = [match for statement in told for match in FIGURE.finditer(statement)]
    return [match[0] for match in found if not any(is_rounded(match[1], value) for value in measured)]


def statements(text: str) -> list[str]:
    """The rows of its tables, and the sentences of its paragraphs, each on one line."""
    rows = re.findall(r"^ *\|.*$", text, flags=re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^ *\|.*$", "", text, flags=re.MULTILINE))
    return rows + [part for one in paragraphs for part in re.split(r"(?<=[.!?]) +(?=[^a-z])", " ".join(one.split()))]


def is_rounded(stated: str, value: float) -> bool:
    """Whether the figure, such as 4,310 or 1.50, is the value in as many digits; zeros at the end of 4,310 are none."""
    number = stated.rstrip(".,").replace(",", "")
    digits = len((number if "." in number else number.rstrip("0")).replace(".", "").lstrip("0"))
    return digits > 0 and float(f"{value:.{digits}g}") == float(number)


def measured_figures() -> list[float]:
    """Rates and speed-ups in the run folders kept in results/, and times in ms and µs."""
    found: list[float] = []
    for path in (ROOT / "results").rglob("results.json"):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            seconds = row.get("time_p50_s") or 0.0
            found += [row.get("rate") or 0.0, row.get("ratio") or 0.0, 1e3 * seconds, 1e6 * seconds]
    return found


def test_the_readme_states_no_figure_that_was_not_measured() -> None:
    assert unfounded(README, measured_figures()) == []


def test_figures_without_a_measurement_are_found() -> None:
    assert unfounded("It reaches 640 TFLOP/s, 1.5 times as fast as others.", []) == ["640 TFLOP/s", "1.5 times as fast"]
    assert unfounded("It reaches 640 TFLOP/s (predicted).\n\nA call takes 12 ms.", []) == ["12 ms"]
    assert unfounded("It reaches 640 TFLOP/s\n(predicted). A call takes 12\nms.", []) == ["12 ms"]
    assert unfounded("predicted:\n| a | 7 TFLOP/s |\n| b | 8 TFLOP/s, predicted |", []) == ["7 TFLOP/s"]
    assert unfounded("It reaches 640 TFLOP/s and 4,310 GB/s, 1.50 times as fast.", [639.9, 4312.0, 1.499]) == []
    assert unfounded("It reaches 643 TFLOP/s and 4,300 GB/s, 1.6 times as fast.", [639.9, 4370.0, 1.499]) == [
        "643 TFLOP/s", "4,300 GB/s", "1.6 times as fast",
    ]  # fmt: skip


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
