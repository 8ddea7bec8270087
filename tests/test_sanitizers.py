"""The .cu kernels under the address and undefined-behaviour sanitizers, in the emulated world."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedformer import build

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-g1")
TESTS = Path(__file__).parent
ROW_WISE = ("softmax", "layer_norm", "rms_norm", "add_norm", "gelu", "bias_activation", "glu")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")]


def runtime(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def compile_sanitized(csrc: Path, library: Path) -> Path:
    build.compile_emulated(build.sources_of(csrc), library, csrc=csrc, flags=SANITIZE)
    return library


def run(library: Path, op: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        # Python leaks at its end. Fibers have stacks of their own, which returns do not leave.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "sanitized.py", str(library), op]
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_sanitized(build.find_csrc(), tmp_path_factory.mktemp("sanitized") / "emulated.so")


@pytest.mark.parametrize("op", ROW_WISE)
def test_nothing_is_reported(library: Path, op: str) -> None:
    result = run(library, op)
    last_call = result.stdout.strip().rpartition("\n")[2]
    assert result.returncode == 0, f"{last_call}: {result.stderr[:3000]}"


@pytest.mark.parametrize(
    ("file", "old", "new", "report"),
    [
        ("vector.cuh", "second + kVectorWidth<T> <= n_", "second <= n_", "AddressSanitizer: heap-buffer-overflow"),
        ("vector.cuh", "= lead % kPerWord * 8 *", "= (lead % kPerWord + 64) * 8 *", "runtime error: shift exponent"),
    ],
    ids=["read-past-a-row", "shift-too-far"],
)
def test_a_planted_bug_is_reported(tmp_path: Path, file: str, old: str, new: str, report: str) -> None:
    csrc = shutil.copytree(build.find_csrc(), tmp_path / "csrc")
    text = (csrc / file).read_text()
    assert text.count(old) == 1
    (csrc / file).write_text(text.replace(old, new))
    result = run(compile_sanitized(csrc, tmp_path / "emulated.so"), "layer_norm")
    assert result.returncode != 0
    assert re.search(report, result.stderr), result.stderr[:3000]
