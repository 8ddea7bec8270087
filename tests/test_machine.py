"""What a run folder says of the machine, and what it does not."""

import json
import platform
from pathlib import Path

import pytest

from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.report import machine
from fusedformer.benchmarks.report.rows import without_folders
from fusedformer.benchmarks.report.tables import environment_table
from fusedformer.kernels import library


def test_the_environment_says_what_explains_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-1021-somecloud")
    environment = machine.collect()
    assert environment["system"].endswith(" 6.8")
    assert environment["implementations"].keys() == OPS.keys()
    assert {"revision", "driver", "nvcc", "g++", "extension"} < environment.keys()
    json.dumps(environment)
    assert len(environment_table(environment).lines) > 5


def test_no_folder_of_this_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "extension_status", lambda: "not loadable: /home/me/lib/_C.so: undefined symbol: x")
    assert machine.collect()["extension"] == "not loadable: _C.so: undefined symbol: x"
    for path in (Path.home(), Path(__file__).parent):
        assert f"{path}/" not in json.dumps(machine.collect())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/tmp/a b/x.cu(3): error", "a b/x.cu(3): error"),
        ("OSError: '/usr/lib/x.so' is gone", "OSError: 'x.so' is gone"),
        (
            "12 GB/s at 3/4 of 1/2 https://pytorch.org/docs/x.html",
            "12 GB/s at 3/4 of 1/2 https://pytorch.org/docs/x.html",
        ),
        ("kernels/softmax.py:3", "kernels/softmax.py:3"),
    ],
)
def test_absolute_paths_lose_their_folders(text: str, told: str) -> None:
    assert without_folders(text) == told


def test_a_system_that_does_not_tell_of_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    assert machine.collect()["cores"] >= 1


def test_a_program_that_is_absent_or_fails_is_an_empty_answer() -> None:
    assert machine._first("no-such-program") == ""
    assert machine._first("false") == ""
    assert machine._first(None) == ""
    assert machine._first("echo", "release 13, V13.0.88", pattern=r"V(\d[\d.]+)") == "13.0.88"
