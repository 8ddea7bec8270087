"""Kernels stay inside their tensors: no op of the emulated world faults with an unreadable page beside each."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedformer import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard_pages") / "guard_pages.so"
    build.compile_emulated([TESTS / "guard_pages.cpp"], path)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONFAULTHANDLER": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize(
    "op",
    [
        "softmax",
        "log_softmax",
        "masked_softmax",
        "cross_entropy",
        "layer_norm",
        "rms_norm",
        "add_norm",
        "gelu",
        "bias_activation",
        "glu",
        "attention",
        "decode",
    ],
)
def test_stays_inside_its_tensors(library: Path, op: str, side: str) -> None:
    result = run("guard_pages.py", library, op, side)
    last_call = result.stdout.strip().rpartition("\n")[2]
    assert result.returncode == 0, f"{last_call}: {result.stderr[:2000]}"


@pytest.mark.parametrize(("side", "index"), [("end", 5), ("start", -1)])
def test_the_page_is_unreadable(library: Path, side: str, index: int) -> None:
    code = (
        f"import ctypes, torch; ctypes.CDLL({str(library)!r}).guard_cpu_tensors({side == 'end'});"
        f"x = torch.ones(5); floats = ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float));"
        f"print([floats[i] for i in range(5)], flush=True); floats[{index}]"
    )
    result = run("-c", code)
    assert result.stdout == f"{[1.0] * 5}\n"
    assert "Segmentation fault" in result.stderr
