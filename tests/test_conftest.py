"""The worlds of the suite: what is required of them, and what stands for a world that is not here."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch

from fusedformer.benchmarks.ops import OPS

TESTS = Path(__file__).parent


def config(required: str) -> Any:
    return SimpleNamespace(getoption=lambda name: required)


def test_an_op_that_ran_nowhere_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = {f"{op}/{world}": 1 for op in OPS for world in ("reference", "emulated")}
    monkeypatch.setattr(conftest, "_cases", lambda config: Counter(ran))
    assert conftest._missing(config("reference,emulated")) == []
    assert conftest._missing(config("gpu")) == [f"{op}/gpu" for op in OPS]
    del ran["gelu/reference"], ran["gelu/emulated"]
    assert conftest._missing(config("reference,emulated")) == ["gelu/reference", "gelu/emulated"]
    assert conftest._missing(config("")) == []


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--require-worlds", "reference"), 1)])
def test_worlds_are_required_of_every_op_but_only_on_request(options: tuple[str, ...], status: int) -> None:
    """A file of one op is a good run by itself; asked for all worlds, it lacks the other ops."""
    command = [sys.executable, "-m", "pytest", "-q", "--worlds", "reference", "-k", "reference", *options]
    process = subprocess.run(
        [*command, str(TESTS / "test_gelu.py")], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert process.returncode == status, process.stdout
    assert ("FAILED: no case of softmax/reference ran" in process.stdout) == bool(options)
    assert "no case of gelu/reference" not in process.stdout


def test_on_a_gpu_without_the_extension_a_case_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: "softmax" not in name)
    conftest._skip_if_not_ours("gelu")
    conftest._skip_if_not_ours(None)
    with pytest.raises(pytest.skip.Exception, match="gpu world: no CUDA kernel"):
        conftest._skip_if_not_ours("softmax")
