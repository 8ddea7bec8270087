"""Every op, forward and backward, by every contender, under pytest-benchmark: `pytest benchmarks`.

Its options save, compare and draw the times (`--benchmark-autosave`, `--benchmark-compare`, `--benchmark-histogram`).
Unlike `fusedformer bench`, contenders run one after the other, and on a GPU a time includes the launch.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fusedformer.benchmarks.gate import judge
from fusedformer.benchmarks.op import DIRECTIONS, Problem, make_run
from fusedformer.benchmarks.ops import OPS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    pytest.param(op, case, contender, direction, id=f"{op.name}-{contender}-{direction}-{case}")
    for op in OPS.values()
    for case in op.time_cases[DEVICE.type]
    for direction in DIRECTIONS
    for contender in op.contenders
]


@pytest.mark.parametrize(("op", "case", "contender", "direction"), CASES)
def test_speed(op: Any, case: Any, contender: str, direction: str, benchmark: Callable[..., Any]) -> None:
    problem = Problem.make(op, case, torch.Generator(DEVICE).manual_seed(0))
    verdict = judge(lambda: problem.error_ratios(op.contenders[contender]))
    if verdict.status != "ok":
        pytest.skip(f"no time: {verdict.reason}")
    run = make_run(op.contenders[contender], [problem], direction)
    benchmark.group = f"{op.name} {direction} {case}"  # type: ignore[attr-defined]
    benchmark(_synchronised(run))


def _synchronised(run: Callable[[], object]) -> Callable[[], object]:
    if DEVICE.type == "cpu":
        return run

    def waited() -> None:
        run()
        torch.cuda.synchronize()

    return waited
