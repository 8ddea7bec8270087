"""The suite has teeth: bugs planted in a copy of the device code make it fail, on a machine without a GPU.

Each bug is one edit of one line, of a kind that kernels really get wrong. The copy's own tests run in the emulated
world and must fail by the named symptom: a wrong value or a report of the emulator, not a broken build.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import planted_attention_bugs
import planted_eager_bugs
import planted_softmax_bugs
import pytest
from planted import Bug

ROOT = Path(__file__).parents[1]
SOFTMAX_TESTS = ("tests/test_softmax.py", "-k", "within_budget or alignment")
LAYER_NORM_TESTS = ("tests/test_layer_norm.py", "-k", "many_rows or 4097")
CLUSTER_TESTS = (
    "tests/test_rows.py",
    "-k",
    "every_rung and softmax and not masked and not log and dtype0 and 4-blocks",
)
LANES_TESTS = ("tests/test_rows.py", "-k", "every_rung and softmax and not masked and not log and dtype0 and lanes")
GELU_TESTS = ("tests/test_gelu.py", "-k", "tails")
EVERY_NUMBER_TESTS = ("tests/test_gelu.py", "-k", "every_number")
BIAS_TESTS = ("tests/test_bias_activation.py", "-k", "many_rows")
GLU_TESTS = ("tests/test_glu.py", "-k", "within_budget and 264")
GUARD_TESTS = ("tests/test_guard_pages.py", "-k")

BUGS = [
    *planted_attention_bugs.BUGS,
    *planted_eager_bugs.BUGS,
    *planted_softmax_bugs.BUGS,
    Bug(
        "missing __syncthreads",
        "csrc/reduce.cuh",
        "      if (lane == 0) *own_slot = warp_value;\n      __syncthreads();",
        "      if (lane == 0) *own_slot = warp_value;",
        SOFTMAX_TESTS,
        slow=True,
    ),
    Bug(
        "last element of an odd row not visited",
        "csrc/row.cuh",
        "if (edge < count)",
        "if (edge < count - 1)",
        SOFTMAX_TESTS,
        slow=True,
    ),
    Bug(
        "missing barrier of the cluster",
        "csrc/reduce.cuh",
        "      __syncwarp();\n      cluster_arrive();\n      cluster_wait();",
        "      __syncthreads();",
        CLUSTER_TESTS,
        symptom="times its budget|which has exited",
    ),
    Bug(
        "cluster's blocks not known to have begun",
        "csrc/reduce.cuh",
        "if (turn_ == 0) cluster_wait();",
        "if (turn_ == 0) cluster_wait(), cluster_arrive();",
        CLUSTER_TESTS,
        symptom="a second arrival without a wait",
        slow=True,
    ),
    Bug(
        "stale shared memory: one set of slots",
        "csrc/reduce.cuh",
        "turn_ % 2 * count * kMaxValueBytes",
        "0 * count * kMaxValueBytes",
        ("tests/test_rows.py", "-k", "every_rung and layer_norm and dtype0 and 1-blocks"),
        slow=True,
    ),
    Bug(
        "one block's share taken twice, another's never",
        "csrc/reduce.cuh",
        "return cluster_rank() * blockDim.x + threadIdx.x;",
        "return (cluster_rank() | 1) * blockDim.x + threadIdx.x;",
        CLUSTER_TESTS,
        slow=True,
    ),
    Bug(
        "empty share of a cluster",
        "csrc/ladder.h",
        "while (cluster > 1 && vectors <= std::int64_t{cluster - 1} * threads)",
        "while (cluster > 1 && vectors <= 0 * threads)",
        ("tests/test_ladder.py",),
        symptom="test_no_share_is_empty_on_a_rung_that_is_too_large",
        slow=True,
    ),
    Bug(
        "row longer than its rung",
        "csrc/ladder.h",
        "vectors <= rung.longest &&",
        "vectors <= rung.longest + 1 &&",
        ("tests/test_ladder.py",),
        symptom="test_a_team_holds_the_whole_row",
        slow=True,
    ),
    Bug(
        "wrong lanes in a group of a warp",
        "csrc/reduce.cuh",
        "const int first_lane = threadIdx.y * threads() % kWarpSize;",
        "const int first_lane = 0;",
        LANES_TESTS,
        symptom="is not in __shfl_xor_sync",
        slow=True,
    ),
    Bug(
        "butterfly reaches into the next group of lanes",
        "csrc/reduce.cuh",
        "if (distance < threads())",
        "if (distance <= threads())",
        LANES_TESTS,
        symptom="which takes no part in|deadlock",
        slow=True,
    ),
    Bug(
        "tail not masked",
        "csrc/row.cuh",
        "if (column < tail)",
        "if (column < tail + kVectorWidth<T>)",
        (*GUARD_TESTS, "softmax and end and not masked and not log"),
        symptom="Segmentation fault",
        slow=True,
    ),
    Bug(
        "shifted input off by an element",
        "csrc/vector.cuh",
        "const int bits = lead % kPerWord",
        "const int bits = lead % 1",
        ("tests/test_rows.py", "-k", "every_rung and dtype2 and 64-hold-8"),
        slow=True,
    ),
    Bug(
        "vector load from an unaligned row",
        "csrc/vector.cuh",
        "return lead_ == 0;",
        "return true;",
        SOFTMAX_TESTS,
        symptom="misaligned address",
        slow=True,
    ),
    Bug(
        "shuffle without the last lane",
        "csrc/reduce.cuh",
        "shuffle_xor(value, distance, 0xffffffffu)",
        "shuffle_xor(value, distance, 0x7fffffffu)",
        SOFTMAX_TESTS,
        symptom="lane 31 is not in",
        slow=True,
    ),
    Bug(
        "last row of a group not summed",
        "csrc/columns.cuh",
        "row < past_row; row += kColumnWarps",
        "row < past_row - 1; row += kColumnWarps",
        LAYER_NORM_TESTS,
        slow=True,
    ),
    Bug(
        "read past the last group's sums",
        "csrc/columns.cuh",
        "column < n && group < groups;",
        "column < n && group <= groups;",
        (*GUARD_TESTS, "layer_norm and end"),
        symptom="Segmentation fault",
        slow=True,
    ),
    Bug(
        "sums of one group of lanes alone",
        "csrc/column_sums.cuh",
        "group < blockDim.y; ++group",
        "group < 1; ++group",
        LAYER_NORM_TESTS,
        slow=True,
    ),
    Bug(
        "another team's row of sums",
        "csrc/column_sums.cuh",
        "partials_ + blockIdx.x / cluster_size() * n",
        "partials_ + blockIdx.x / (2 * cluster_size()) * n",
        LAYER_NORM_TESTS,
        slow=True,
    ),
    Bug(
        "sums in the memory that reductions use",
        "csrc/column_sums.cuh",
        "shared_memory<unsigned char>() + team.own_shared_bytes()",
        "shared_memory<unsigned char>()",
        ("tests/test_rms_norm.py", "-k", "4096"),
        slow=True,
    ),
    Bug(
        "dropout drawn by the place in the vector",
        "csrc/dropout.cuh",
        "const int lead = static_cast<int>(column % 4);",
        "const int lead = 0;",
        ("tests/test_add_norm.py", "-k", "paper and 33"),
        slow=True,
    ),
    Bug(
        "norm of the sum before it was rounded",
        "csrc/norm.cuh",
        "sum = to_float(from_float<T>(sum));",
        "sum = sum;",
        ("tests/test_add_norm.py", "-k", "rounded_sum and stream"),
        symptom="AssertionError|assert",
        slow=True,
    ),
    Bug(
        "write before the first row",
        "csrc/vector.cuh",
        "*address = from_float<T>(values[0]);",
        "*address = *(address - 1) = from_float<T>(values[0]);",
        (*GUARD_TESTS, "softmax and start and not masked and not log"),
        symptom="Segmentation fault",
        slow=True,
    ),
    Bug(
        "slope of GELU overflows",
        "csrc/activations.cuh",
        "return fminf(fmaxf(x, -kFar), kFar);",
        "return x;",
        GELU_TESTS,
        symptom=r"gelu'\(.*\) is nan",
        slow=True,
    ),
    Bug(
        "sign of a coefficient",
        "csrc/activations.cuh",
        "-0.00022801454f",
        "0.00022801454f",
        EVERY_NUMBER_TESTS,
        symptom=r"instead of",
        slow=True,
    ),
    Bug(
        "a NaN lost by fmin",
        "csrc/device.h",
        "return a != a || b != b ? NAN : fminf(a, b);",
        "return fminf(a, b);",
        EVERY_NUMBER_TESTS,
        symptom="isnan",
        slow=True,
    ),
    Bug(
        "halves swapped",
        "csrc/functions_activation.cpp",
        "gate = gate_rows.rows();\n    up = up_rows.rows(given_up ? 0 : n);",
        "up = gate_rows.rows();\n    gate = up_rows.rows(given_up ? 0 : n);",
        GLU_TESTS,
        slow=True,
    ),
    Bug(
        "gradient of a half written to the other's rows",
        "csrc/glu.cu",
        "store_floats(dup + row * dup_stride + column, dys);",
        "store_floats(dup + row * n + column, dys);",
        GLU_TESTS,
        slow=True,
    ),
    Bug(
        "second stage without its last group",
        "csrc/columns.cuh",
        "group < groups; group += kColumnWarps",
        "group < groups - 1; group += kColumnWarps",
        BIAS_TESTS,
        slow=True,
    ),
    Bug(
        "butterfly stops one step early",
        "csrc/reduce.cuh",
        "distance > 0; distance /= 2) {\n    value.merge",
        "distance > 1; distance /= 2) {\n    value.merge",
        LAYER_NORM_TESTS,
        slow=True,
    ),
]


def build_eager(folder: Path) -> None:
    """In a copy of the project."""
    module = folder / "src" / "fusedformer" / f"_eager{sysconfig.get_config_var('EXT_SUFFIX')}"
    code = f"from pathlib import Path; from fusedformer import build; build.build_eager(Path({str(module)!r}))"
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=300)


def run_copy(folder: Path, tests: tuple[str, ...], edit: Bug | None = None) -> subprocess.CompletedProcess[str]:
    """Run `tests` of a copy of the project, with `edit` made, in the emulated world."""
    for name in ("src", "csrc", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if edit:
        path = folder / edit.file
        text = path.read_text()
        assert text.count(edit.old) == 1, (
            f"{edit.name}: {edit.old!r} stands {text.count(edit.old)} times in {edit.file}"
        )
        path.write_text(text.replace(edit.old, edit.new))
    if "tests/test_eager.py" in tests:
        build_eager(folder)
    # Without a GPU, for on one Triton's kernels are compiled, and what the interpreter runs is skipped.
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--worlds", "emulated", *tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_copy_sees_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(subprocess, "run", lambda _, **options: called.update(options))
    run_copy(tmp_path, ())
    assert called["env"]["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({bug.tests for bug in BUGS}), ids=lambda tests: Path(tests[0]).stem)
def test_an_untouched_copy_passes(tmp_path: Path, tests: tuple[str, ...]) -> None:
    result = run_copy(tmp_path, tests)
    assert result.returncode == pytest.ExitCode.OK, result.stdout[-3000:] + result.stderr[-1000:]


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.name.replace(" ", "-"), marks=[pytest.mark.slow] * bug.slow) for bug in BUGS],
)
def test_a_planted_bug_is_found(tmp_path: Path, bug: Bug) -> None:
    result = run_copy(tmp_path, bug.tests, bug)
    noticed = (pytest.ExitCode.TESTS_FAILED, -signal.SIGSEGV)  # an offset that is far off ends the run itself
    assert result.returncode in noticed, result.stdout[-3000:] + result.stderr[-1000:]
    assert re.search(bug.symptom, result.stdout + result.stderr), (
        f"failed, but not by {bug.symptom!r}:\n{result.stdout[-3000:]}"
    )
