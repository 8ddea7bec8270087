"""`fusedformer bench patched_bert ...`: models of other libraries, patched and as they are, with the same answers."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from fusedformer.benchmarks import patched
from fusedformer.benchmarks.harness.comparison import Comparison
from fusedformer.benchmarks.harness.implementation import OURS
from fusedformer.benchmarks.ops import PATCHED
from fusedformer.drop_in.classes import Patched

CPU = torch.device("cpu")
HUGGING_FACE = [name for name, model in PATCHED.items() if model.library == "transformers"]


def comparison(name: str) -> Comparison:
    pytest.importorskip(PATCHED[name].library, reason=f"{PATCHED[name].library} is not installed")
    (found,) = patched.comparisons(PATCHED[name], CPU, seed=0)
    return found


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_every_contender_is_right_and_runs(name: str) -> None:
    for contender in comparison(name).contenders.values():
        verdict = contender.judge()
        assert (verdict.status, verdict.reason) == ("ok", "")
        contender.prepare().run()


def test_ours_is_patched_and_has_the_weights_of_the_others() -> None:
    comparison("patched_bert")
    bench = patched._Bench(PATCHED["patched_bert"], CPU, torch.float32, seed=0)
    models: list[Any] = [bench.make(name, torch.float32) for name in patched.CONTENDERS]
    ours, sdpa, eager = models
    assert any(isinstance(module, Patched) for module in ours.modules())
    assert not any(isinstance(module, Patched) for module in [*sdpa.modules(), *eager.modules()])
    assert (sdpa.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
    for tensors in zip(*(model.state_dict().values() for model in models), strict=True):
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def test_a_patch_that_computes_something_else_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)

    found = comparison("patched_gpt2")
    monkeypatch.setattr(patched, "patch", wrong)
    verdict = found.contenders[OURS].judge()
    assert verdict.status == "wrong"
    assert "times its budget" in verdict.reason


def test_the_answer_in_float64_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, torch.dtype]] = []
    make = patched._Bench.make

    def noted(self: patched._Bench, contender: str, dtype: torch.dtype, *rest: Any) -> nn.Module:
        made.append((contender, dtype))
        return make(self, contender, dtype, *rest)

    monkeypatch.setattr(patched._Bench, "make", noted)
    for contender in comparison("patched_bert").contenders.values():
        assert contender.judge().status == "ok"
    assert made.count((patched.EAGER, torch.float64)) == 1
    assert sum(dtype == torch.float64 for _, dtype in made) == 1


def test_a_library_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    (found,) = patched.comparisons(PATCHED["patched_timm_vit"], CPU, seed=0)
    assert found.contenders[OURS].judge().status == "missing"


def test_timm(timm: Any) -> None:
    (found,) = patched.comparisons(PATCHED["patched_timm_vit"], CPU, seed=0)
    for contender in found.contenders.values():
        assert contender.judge().status == "ok"
        contender.prepare().run()
