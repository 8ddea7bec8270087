"""The package's face: what `import fusedformer` gives and costs, and that the README tells the truth."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fusedformer
import fusedformer.kernels.softmax
from fusedformer.benchmarks.verify import inputs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_public_name_is_there_and_documented() -> None:
    for name in fusedformer.__all__:
        value = getattr(fusedformer, name)
        assert name == "__version__" or value.__doc__, name


def test_functions_and_modules_do_not_shadow_each_other() -> None:
    assert isinstance(fusedformer.softmax, types.FunctionType)
    assert isinstance(fusedformer.kernels.softmax, types.ModuleType)
    assert fusedformer.kernels.softmax.softmax is fusedformer.softmax


def test_import_brings_in_no_extras() -> None:
    extras = {"typer", "rich", "matplotlib", "safetensors", "tokenizers", "pytest", "transformers", "timm", "kernels"}
    code = f"import sys, fusedformer; print(*({extras} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_import_needs_no_numpy() -> None:
    """A plain install brings PyTorch and Triton, and neither brings numpy; only Triton's interpreter needs it."""
    code = "import sys; sys.modules['numpy'] = None; import fusedformer"
    settings = ("TRITON_INTERPRET", "FUSEDFORMER_EMULATE")
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.needs_index
def test_python_in_the_readme_runs() -> None:
    """One program of all blocks, as a reader would paste them."""
    try:
        inputs.require(inputs.MINILM, inputs.SMOLLM2, "safetensors", "tokenizers", "gguf")
    except inputs.MissingError as missing:
        pytest.skip(f"what the README loads is not installed: {missing}")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    result = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_make_targets_and_files_in_the_readme_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"\bmake (\w+)", README)) <= {*targets, "sure"}
    for script in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / "examples" / script).is_file(), script
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
