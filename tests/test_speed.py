"""Every op, forward and backward, by every contender, under pytest-benchmark: one small case each here.

`pytest tests/test_speed.py --time-cases` measures the cases of `fusedformer bench`; pytest-benchmark's own options
save, compare and draw the times (`--benchmark-autosave`, `--benchmark-compare`, `--benchmark-histogram`). Contenders
run one after the other here, not interleaved as in `bench`, and on a GPU a time includes the launch.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fusedformer.benchmarks.harness.comparison import judge
from fusedformer.benchmarks.harness.op import DIRECTIONS, Case, Op, Problem, make_run
from fusedformer.benchmarks.ops import OPS

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contender" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--time-cases")
        metafunc.parametrize(
            ("op", "case", "direction", "contender"),
            [
                pytest.param(op, case, direction, contender, id=f"{op.name}-{contender}-{direction}-{case}")
                for op in OPS.values()
                for case in (op.time_cases[DEVICE.type] if is_long else op.error_cases[:1])
                for direction in DIRECTIONS
                for contender in op.contenders
            ],
        )


def test_speed(op: Op, case: Case, direction: str, contender: str, benchmark: Callable[..., Any]) -> None:
    run = right_run(op, case, direction, contender)
    benchmark.group = f"{op.name} {direction} {case}"  # type: ignore[attr-defined]
    benchmark(_synchronised(run))


def test_a_wrong_kernel_fails() -> None:
    softmax = OPS["softmax"]
    with pytest.raises(pytest.fail.Exception, match="times its budget"):
        right_run(softmax, softmax.error_cases[0], "forward", "off", lambda x: torch.softmax(x, -1) * 1.1)


def right_run(
    op: Op, case: Case, direction: str, contender: str, function: Callable[..., Any] | None = None
) -> Callable[[], object]:
    """One call of the contender, whose answer is right; fails where it is not."""
    problem = Problem.make(op, case, torch.Generator(DEVICE).manual_seed(0))
    function = function or op.contenders[contender]
    verdict = judge(lambda: problem.error_ratios(function))
    if verdict.status != "ok":
        pytest.fail(f"{op.name} by {contender} is {verdict.status}: {verdict.reason}")
    return make_run(function, [problem], direction)


def _synchronised(run: Callable[[], object]) -> Callable[[], object]:
    if DEVICE.type == "cpu":
        return run

    def waited() -> None:
        run()
        torch.cuda.synchronize()

    return waited
