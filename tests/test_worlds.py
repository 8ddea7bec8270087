"""The errors of every op in every world: processes whose ends are results, and never PyTorch's kernels as ours."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fusedformer.benchmarks.harness import op as op_harness
from fusedformer.benchmarks.harness import processes, worlds
from fusedformer.benchmarks.harness.comparison import Verdict
from fusedformer.benchmarks.ops import OPS
from fusedformer.kernels import library

CPU = torch.device("cpu")


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError


class FakeCudaGenerator:
    """Of a device that this machine need not have."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def manual_seed(self, seed: int) -> "FakeCudaGenerator":
        return self


def test_the_emulated_world_runs_in_a_process_of_its_own() -> None:
    if shutil.which("g++") is None:
        pytest.skip("emulated world: no g++")
    op = OPS["softmax"]
    rows = list(worlds.emulated_error_rows([op], seed=0, timeout_s=300))
    assert [(row.world, row.status) for row in rows] == [("emulated", "ok")] * len(op.error_cases)


def test_an_op_that_ends_the_process_has_failed_with_its_last_words() -> None:
    op = replace(OPS["gelu"], name="no_such_op")
    (row,) = worlds.emulated_error_rows([op], seed=0, timeout_s=300)
    assert (row.subject, row.status, row.case) == ("no_such_op", "failed", str(op.error_cases[0]))
    assert row.reason == "the emulation exited with status 1: KeyError: 'no_such_op'"


def test_a_crash_fails_its_case_and_the_next_ops_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a kernel that reads past its memory: the second case of softmax dies."""
    died = worlds.row_without_figure(OPS["softmax"], "emulated", "skipped", "-").to_dict()
    code = """if True:
        import json, os, signal, sys
        row, names = json.loads(sys.argv[1]), sys.argv[2:]
        for name in names:
            for case in range(100 if name == "gelu" else 1):
                print(json.dumps(row | {"subject": name, "status": "ok"}), flush=True)
            if name == "softmax":
                os.kill(os.getpid(), signal.SIGSEGV)
    """
    monkeypatch.setattr(
        worlds,
        "_emulated_process",
        lambda ops, seed, stderr: processes.start(
            [sys.executable, "-c", code, json.dumps(died), *(op.name for op in ops)], stdout=subprocess.PIPE
        ),
    )
    rows = list(worlds.emulated_error_rows([OPS["softmax"], OPS["gelu"]], seed=0, timeout_s=60))
    assert [(row.subject, row.status) for row in rows[:2]] == [("softmax", "ok"), ("softmax", "failed")]
    assert rows[1].reason == "the emulation died of SIGSEGV"
    assert rows[1].case == str(OPS["softmax"].error_cases[1])
    assert {(row.subject, row.status) for row in rows[2:]} == {("gelu", "ok")}


def test_a_process_out_of_time_is_ended() -> None:
    rows = list(worlds.emulated_error_rows(list(OPS.values()), seed=0, timeout_s=0.01))
    assert [row.subject for row in rows] == list(OPS)
    assert {(row.status, row.reason) for row in rows} == {("skipped", "not finished after 0.01 s")}


def test_an_op_whose_inputs_do_not_fit_has_failed() -> None:
    op = replace(OPS["gelu"], make_inputs=out_of_memory)
    rows = list(worlds.error_rows(op, CPU, seed=0))
    assert {(row.status, row.reason) for row in rows} == {("out of memory", "out of memory")}


def test_pytorchs_kernels_are_not_published_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: "_fwd" in name)
    monkeypatch.setattr(library, "extension_status", lambda: "not built")
    assert op_harness.missing_kernel("gelu", "cpu") == ""
    assert op_harness.missing_kernel("gelu", "cuda") == "no CUDA kernel (not built)"
    timed = op_harness._TimedCase(OPS["gelu"], OPS["gelu"].error_cases[0], torch.device("cuda"), 0)
    assert timed.verdict("ours", "forward") == Verdict("missing", "no CUDA kernel (not built)")
    monkeypatch.setattr(worlds.torch, "Generator", FakeCudaGenerator)
    rows = list(worlds.error_rows(OPS["gelu"], torch.device("cuda"), seed=0))
    assert {(row.world, row.status, row.reason) for row in rows} == {("gpu", "missing", "no CUDA kernel (not built)")}
