"""Our attention held to one of its tiers in the benchmark: what runs there, and what the rows of the others say."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fusedformer.benchmarks import attention, attention_varlen
from fusedformer.benchmarks.contenders.tiers import FUSED, HOPPER, TRITON, tiers
from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict
from fusedformer.benchmarks.harness.implementation import version_of
from fusedformer.benchmarks.harness.op import BACKWARD, BOTH, FORWARD, Case, Op, comparisons
from fusedformer.kernels import emulation

pytest.importorskip("triton")

from fusedformer.kernels import replay
from fusedformer.kernels.attention import launch
from fusedformer.kernels.attention.hopper import dispatch

pytestmark = pytest.mark.op("attention")

SMALL = {"B": 1, "S": 70, "H": 1, "K": 1, "D": 64}
CASE = Case(SMALL, torch.float16, {"causal": True})
UNRECORDED = "not yet on record as correct on an H200: FUSEDFORMER_HOPPER=1 turns it on"


def compared(case: Case, device: torch.device, op: Op = attention.OP) -> dict[str, Comparison]:
    """By direction, of the tiers."""
    held = replace(op, contenders={name: op.contenders[name] for name in (TRITON, HOPPER, FUSED)})
    return {comparison.direction: comparison for comparison in comparisons(held, case, device, seed=0)}


def launched(served: list[str], step: Callable[[], object]) -> set[str]:
    """The Hopper kernels that a step launches."""
    replay.forget()  # a replay of a launch is not noted
    served.clear()
    step()
    return set(served)


@pytest.mark.parametrize(
    ("name", "direction", "judged", "timed"),
    [
        (HOPPER, FORWARD, {"fwd"}, {"fwd"}),
        (HOPPER, BACKWARD, {"fwd", "dkdv", "dq"}, {"dkdv", "dq"}),
        (FUSED, BOTH, {"fwd", "fused"}, {"fwd", "fused"}),
    ],
    ids=["forward", "backward", "fused"],
)
def test_a_tier_is_judged_and_timed_in_its_own_kernels(
    name: str, direction: str, judged: set[str], timed: set[str], hopper_device: torch.device, served: list[str]
) -> None:
    with dispatch.preferred(""):
        contender = compared(CASE, hopper_device)[direction].contenders[name]
        assert launched(served, lambda: assert_right(contender.judge())) == judged
        assert launched(served, contender.prepare().run) == timed
        assert dispatch.preference() == ""


def assert_right(verdict: Verdict) -> None:
    assert (verdict.status, verdict.reason) == ("ok", "")


def test_what_is_unasked_is_timed_once(hopper_device: torch.device, served: list[str]) -> None:
    """Ours is Triton's today, and with FUSEDFORMER_HOPPER=1 Hopper's."""
    with dispatch.preferred(""):
        found = compared(CASE, hopper_device)[FORWARD].contenders
        inputs = attention.make_inputs(CASE, torch.Generator(hopper_device).manual_seed(0))
        assert launched(served, lambda: attention.OP.contenders["ours"](*inputs, causal=True)) == set()
        assert reason_of(found[TRITON]) == f"as ours: {UNRECORDED}"
        assert reason_of(found[FUSED]).startswith("as ours, Hopper: without dQ")
    with dispatch.preferred("1"):
        found = compared(CASE, hopper_device)[FORWARD].contenders
        assert reason_of(found[HOPPER]) == "as ours: it serves unasked"
        assert launched(served, lambda: assert_right(found[TRITON].judge())) == set()
        assert launched(served, found[TRITON].prepare().run) == set()


def reason_of(contender: Contender) -> str:
    verdict = contender.judge()
    assert verdict.status == "missing"
    return verdict.reason


@pytest.mark.parametrize(
    ("case", "direction", "name", "reason"),
    [
        (replace(CASE, dtype=torch.float32), FORWARD, HOPPER, "fwd: it is for float16 and bfloat16, not torch.float32"),
        (replace(CASE, sizes={**SMALL, "D": 16}), FORWARD, HOPPER, "fwd: it has no tile for head dimensions 16 and 16"),
        (replace(CASE, sizes={**SMALL, "D": 256}), BOTH, FUSED, "fused: it has no tile for head dimensions 256 and"),
    ],
    ids=["float32", "narrow", "wide fused"],
)  # fmt: skip
def test_what_a_tier_does_not_serve_is_missing_for_its_reason(
    case: Case, direction: str, name: str, reason: str, hopper_device: torch.device
) -> None:
    with dispatch.preferred(""):
        assert reason_of(compared(case, hopper_device)[direction].contenders[name]).startswith(reason)


def test_packed_wide_heads_are_served_forward_alone(hopper_device: torch.device, served: list[str]) -> None:
    case = Case({"B": 2, "S": 70, "H": 1, "K": 1, "D": 192}, torch.bfloat16, {"causal": True})
    with dispatch.preferred(""):
        found = compared(case, hopper_device, attention_varlen.OP)
        assert launched(served, lambda: assert_right(found[FORWARD].contenders[HOPPER].judge())) == {"fwd"}
        reason = reason_of(found[BOTH].contenders[HOPPER])
    assert reason.startswith("dkdv: it does not take packed sequences")


def test_on_another_gpu_it_is_triton_alone(hopper_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = dispatch.refusal

    def on_sm_80(kernel: str, problem: launch.Problem, *tensors: torch.Tensor) -> str | None:
        return dispatch._unfit_place(80) or refusal(kernel, problem, *tensors)

    monkeypatch.setattr(dispatch, "refusal", on_sm_80)
    with dispatch.preferred(""):
        found = compared(CASE, hopper_device)[FORWARD].contenders
        assert reason_of(found[HOPPER]) == "fwd: it is for sm_90, this is sm_80"
        assert reason_of(found[TRITON]) == "as ours: it is for sm_90, this is sm_80"


def test_whoever_switches_the_tier_off_does_not_get_it(hopper_device: torch.device, served: list[str]) -> None:
    with dispatch.preferred("0"):
        found = compared(CASE, hopper_device)[BOTH].contenders
        assert [reason_of(found[name]) for name in (HOPPER, FUSED)] == ["FUSEDFORMER_HOPPER=0"] * 2
        assert reason_of(found[TRITON]) == "as ours: FUSEDFORMER_HOPPER=0"
    assert served == []


def test_a_wrong_answer_of_a_tier_gets_no_time(hopper_device: torch.device) -> None:
    op = replace(attention.OP, contenders=tiers(lambda *inputs, **options: 1.1 * attention.ours(*inputs, **options)))
    with dispatch.preferred(""):
        (comparison, *_) = comparisons(op, CASE, hopper_device, seed=0)
        verdict = comparison.contenders[HOPPER].judge()
    assert (verdict.status, verdict.worst_tensor) == ("wrong", "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_where_no_kernel_runs_the_rows_say_so() -> None:
    with emulation.emulated(False):
        for contender in compared(CASE, torch.device("cpu"))[FORWARD].contenders.values():
            assert reason_of(contender) == "needs a CUDA device"
    assert {version_of(name, function) for name, function in tiers(attention.ours).items()} == {
        version_of("ours", attention.ours)
    }
