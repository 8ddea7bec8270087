"""The time of an op, forward and backward, on one device: each case of it makes two comparisons."""

import math
from functools import cached_property, partial

import torch

from fusedformer.benchmarks.comparison import Comparison, Contender
from fusedformer.benchmarks.gate import Verdict, judge
from fusedformer.benchmarks.op import DIRECTIONS, Case, Op, Problem, make_run
from fusedformer.benchmarks.timing import Run
from fusedformer.benchmarks.worlds import WORLDS


def comparisons(op: Op, case: Case, device: torch.device, seed: int) -> list[Comparison]:
    """Forward and backward of one case; both share their inputs and the verdicts on the contenders."""
    timed = _TimedCase(op, case, device, seed)
    return [
        Comparison(
            subject=op.name,
            case=str(case),
            dtype=case.dtype_name,
            world=WORLDS[device.type],
            direction=direction,
            contenders={
                name: Contender(partial(timed.verdict, name), partial(timed.prepare, name, direction))
                for name in op.contenders
            },
            work=op.work(case, direction),
        )
        for direction in DIRECTIONS
    ]


class _TimedCase:
    """Inputs and verdicts of one case, made when they are first needed."""

    def __init__(self, op: Op, case: Case, device: torch.device, seed: int) -> None:
        self.op, self.case, self.device, self.seed = op, case, device, seed
        self._verdicts: dict[str, Verdict] = {}

    @cached_property
    def problems(self) -> list[Problem]:
        """Enough of them to take turns that the L2 cache of a GPU has lost the inputs when their turn comes again."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        first = Problem.make(self.op, self.case, generator)
        further = math.ceil(2 * _l2_bytes(self.device) / first.n_bytes)
        return [first, *(Problem.make(self.op, self.case, generator) for _ in range(further))]

    def verdict(self, contender: str) -> Verdict:
        """Whether output and gradients are right; worked out once for both directions."""
        if contender not in self._verdicts:
            function = self.op.contenders[contender]
            self._verdicts[contender] = judge(lambda: self.problems[0].error_ratios(function))
        return self._verdicts[contender]

    def prepare(self, contender: str, direction: str) -> Run:
        """One call of the contender."""
        return make_run(self.op.contenders[contender], self.problems, direction)


def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
