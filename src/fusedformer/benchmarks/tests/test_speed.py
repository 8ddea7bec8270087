"""Every op, in every direction and by every contender, under pytest-benchmark: `pytest benchmarks`.

One small case each, and marked slow, the cases of `fusedformer bench` and what has to be compiled first; pytest-
benchmark's own options save, compare and draw the times (`--benchmark-autosave`, `--benchmark-compare`,
`--benchmark-histogram`). A contender is held against float64 before, as in `bench`; they run one after the other
here, not interleaved. On a GPU the timer waits for it, so that a time includes what the launches cost.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fusedformer.benchmarks.harness.comparison import Comparison
from fusedformer.benchmarks.harness.op import Case, Op, comparisons
from fusedformer.benchmarks.harness.timing import Run
from fusedformer.benchmarks.ops import TIMED_OPS

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILED = ("torch.compile", "FlexAttention")  # contenders that take a compiler up to a minute


def timer() -> float:
    """Seconds on a clock, when all work of the GPU is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def parameters() -> Iterator[Any]:
    """(op, case, direction, contender) of every test."""
    for op in TIMED_OPS.values():
        for case in (op.error_cases[0], *op.time_cases[DEVICE.type]):
            for direction in op.directions:
                for name in op.contenders:
                    is_slow = case is not op.error_cases[0] or name in COMPILED
                    marks = [pytest.mark.slow] if is_slow else []
                    yield pytest.param(
                        op, case, direction, name, marks=marks, id=f"{op.name}-{name}-{direction}-{case}"
                    )


@pytest.mark.benchmark(timer=timer)
@pytest.mark.parametrize(("op", "case", "direction", "contender"), list(parameters()))
def test_speed(op: Op, case: Case, direction: str, contender: str, benchmark: Any) -> None:
    run = right_run(known_comparison(op, case, direction), contender)
    benchmark.group = f"{op.name} {direction} {case}"
    benchmark(run)


def test_a_wrong_kernel_fails_and_a_missing_one_is_skipped() -> None:
    op = TIMED_OPS["softmax"]
    wrong = replace(op, contenders={"off": lambda x: torch.softmax(x, -1) * 1.1})
    with pytest.raises(pytest.fail.Exception, match="times its budget"):
        right_run(comparisons(wrong, op.error_cases[0], DEVICE, seed=0)[0], "off")


def right_run(comparison: Comparison, name: str) -> Run:
    """One call of the contender, whose answer is right; skips where it is not to be had, fails where it is wrong."""
    contender = comparison.contenders[name]
    verdict = contender.judge()
    if verdict.status == "missing":
        pytest.skip(f"{name}: {verdict.reason}")
    if verdict.status != "ok":
        pytest.fail(f"{comparison} by {name} is {verdict.status}: {verdict.reason}")
    return contender.prepare().run


def known_comparison(op: Op, case: Case, direction: str) -> Comparison:
    """Made once for all tests of a case, which follow one another: inputs and verdicts are worked out once."""
    return _comparisons(op.name, str(case), case.dtype)[direction]


@functools.lru_cache(maxsize=1)
def _comparisons(name: str, words: str, dtype: torch.dtype) -> dict[str, Comparison]:
    op = TIMED_OPS[name]
    cases = (op.error_cases[0], *op.time_cases[DEVICE.type])
    case = next(case for case in cases if (str(case), case.dtype) == (words, dtype))
    return {comparison.direction: comparison for comparison in comparisons(op, case, DEVICE, seed=0)}
