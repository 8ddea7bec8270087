"""The simulator has teeth: it notices every bug planted in the Hopper attention kernels, whatever the schedule.

In `make test` a bug of every few runs, on ten schedules; all of them run where `slow` tests do, and on
FUSEDFORMER_HOPPER_SEEDS schedules if that is set.
"""

import os
from collections import Counter

import pytest

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
import planted_gluon_bugs
import planted_gluon_fp8_bugs
import planted_gluon_gradient_bugs
import planted_gluon_grid_bugs
import planted_gluon_packed_bugs
import planted_gluon_score_bugs
import planted_gluon_tail_bugs
import planted_gluon_wide_bugs
from planted_gluon import CASES, GluonBug, edited, texts
from planted_gluon_runs import outcome

SEEDS = range(int(os.environ.get("FUSEDFORMER_HOPPER_SEEDS", "10")))
EVERY = 15  # bugs, of which one is in `make test`
MODULES = (
    planted_gluon_bugs,
    planted_gluon_score_bugs,
    planted_gluon_gradient_bugs,
    planted_gluon_wide_bugs,
    planted_gluon_packed_bugs,
    planted_gluon_fp8_bugs,
    planted_gluon_tail_bugs,
    planted_gluon_grid_bugs,
)
BUGS = [bug for module in MODULES for bug in module.BUGS]
HARMLESS = [edit for module in MODULES for edit in getattr(module, "HARMLESS", [])]
# Which random schedules alone let pass on some seeds.
NEED_CLOCKS = [
    "fwd_kernel: O over the other consumer's Q",
    "fwd_kernel: V of the wrong tile released",
    "dq_kernel: no wait for Q and dO",
]


def parameters(edits: list[GluonBug]) -> list[object]:
    return [
        pytest.param(edit, id=edit.name.replace(" ", "-"), marks=[pytest.mark.slow] * (place % EVERY != 0))
        for place, edit in enumerate(edits)
    ]


def outcomes(bug: GluonBug, seeds: range = SEEDS, *, clocks: bool = True) -> list[str]:
    with edited(bug.edits) as modules:
        return [outcome(modules, CASES[bug.case], seed, clocks=clocks) for seed in seeds]


def test_there_are_a_hundred_bugs_of_different_names() -> None:
    assert len(BUGS) >= 100
    assert max(Counter(bug.name for bug in BUGS + HARMLESS).values()) == 1


@pytest.mark.parametrize("bug", parameters(BUGS))
def test_a_planted_bug_is_noticed_on_every_schedule(bug: GluonBug) -> None:
    assert "right" not in outcomes(bug)


@pytest.mark.parametrize("edit", parameters(HARMLESS))
def test_a_harmless_edit_is_accepted(edit: GluonBug) -> None:
    assert set(outcomes(edit)) == {"right"}


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_as_they_are(case: str) -> None:
    assert set(outcomes(GluonBug("", case, ()))) == {"right"}


@pytest.mark.parametrize("name", NEED_CLOCKS)
def test_random_schedules_alone_let_bugs_pass(name: str) -> None:
    (bug,) = (bug for bug in BUGS if bug.name == name)
    assert "right" in outcomes(bug, range(10), clocks=False)


def test_every_edit_has_one_place() -> None:
    for bug in BUGS + HARMLESS:
        texts(bug.edits)
