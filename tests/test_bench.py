"""What `bench` measures: a wrong answer gets no time, every gap has its reason, and one run hangs together."""

import itertools
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusedformer.benchmarks import attention, bench, models, ops
from fusedformer.benchmarks.harness import op as op_harness
from fusedformer.benchmarks.harness import worlds
from fusedformer.benchmarks.harness.comparison import Comparison, Contender, Verdict, judge
from fusedformer.benchmarks.harness.instruments import Instruments, Prepared
from fusedformer.benchmarks.harness.op import BACKWARD, BOTH, FORWARD, Case, Op, Problem, make_run
from fusedformer.benchmarks.harness.timing import Plan, Run
from fusedformer.benchmarks.models import ModelCase
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.static import collect
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.transformer.config import TransformerConfig

CPU = torch.device("cpu")
BRIEF = Plan(seconds=0.0, sample_seconds=0.0, min_rounds=6)
INSTRUMENTS = Instruments.of(CPU)
OPS = list(ops.TIMED_OPS.values())
OP_NAMES = list(ops.TIMED_OPS)
TINY: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32}
TINY_CONFIGS = {
    "encoder": TransformerConfig(**TINY, vocab_size=11, max_seq_len=6, norm_position="post"),
    "decoder": TransformerConfig(**TINY, vocab_size=11, max_seq_len=6),
    "encoder_decoder": TransformerConfig(**TINY, vocab_size=11, max_seq_len=6),
    "vision_transformer": TransformerConfig(**TINY, image_size=8, patch_size=4, n_channels=3, n_classes=5),
}


def problem_of(op: Op, case: Case | None = None) -> Problem:
    return Problem.make(op, case or op.error_cases[0], torch.Generator().manual_seed(0))


def tiny(name: str) -> models.Architecture:
    return replace(models.ARCHITECTURES[name], cases={"cpu": ModelCase(TINY_CONFIGS[name], 2, torch.float32)})


def compare(plan: Plan = BRIEF, **contenders: Contender) -> dict[str, Row]:
    comparison = Comparison("softmax", "N=3", "float32", "reference", FORWARD, contenders)
    return {row.contender: row for row in comparison.measured(INSTRUMENTS, lambda: plan)}


def by(run: Run) -> Contender:
    """One that is right, timed by calls of `run`."""
    return Contender(right, lambda: Prepared(run))


def right() -> Verdict:
    return Verdict("ok", "", 0.5, "out")


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


class TestGate:
    @pytest.mark.parametrize("op", OPS, ids=OP_NAMES)
    def test_ours_and_pytorchs_are_right_in_every_tensor(self, op: Op) -> None:
        for case in op.error_cases:
            problem = problem_of(op, case)
            for function in (op.contenders["ours"], op.plain):
                ratios = problem.error_ratios(function)
                with_gradient = [name for name in op.input_names if name not in ("target", "seen", "cu_seqlens")]
                names = [f"d{name}" for name in with_gradient] if BACKWARD in op.directions else []
                assert list(ratios) == ["out", *names]
                assert all(ratio <= 1 for ratio in ratios.values())

    @pytest.mark.parametrize("op", OPS, ids=OP_NAMES)
    def test_an_output_and_a_gradient_slightly_off_are_wrong(self, op: Op) -> None:
        def off(*inputs: Tensor, **options: Any) -> Tensor:
            return op.plain(*inputs, **options) * 1.1

        verdict = judge(lambda: problem_of(op).error_ratios(off))
        assert verdict.status == "wrong"
        assert verdict.error_ratio is not None
        assert verdict.error_ratio > 1
        assert f"{verdict.error_ratio:.3g} times its budget" in verdict.reason

    def test_nan_is_wrong_and_names_its_tensor(self) -> None:
        verdict = judge(lambda: problem_of(ops.OPS["softmax"]).error_ratios(lambda x: torch.softmax(x, -1) * math.nan))
        assert (verdict.status, verdict.error_ratio) == ("wrong", None)
        assert "out is NaN or infinite where float64 is not" in verdict.reason

    def test_the_last_key_head_of_attention_is_looked_at(self) -> None:
        def last_head_off(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
            scale = torch.ones(q.shape[2], 1).index_fill(0, torch.tensor([q.shape[2] - 1]), 1.5)
            return attention.plain(q, k, v, causal=causal) * scale

        for case in attention.OP.error_cases:
            problem = problem_of(attention.OP, replace(case, dtype=torch.float32))
            assert max(problem.error_ratios(last_head_off).values()) > 1

    def test_raising_is_a_verdict(self) -> None:
        assert judge(raising(RuntimeError("no kernel\nfor this"))).reason == "RuntimeError: no kernel for this"
        for error in (
            torch.OutOfMemoryError(),
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ):
            assert judge(raising(error)).reason == "out of memory"
        assert judge(raising(OSError("/home/me/x/_C.so: no"))).reason == "OSError: _C.so: no"

    def test_a_ratio_that_is_no_number_is_wrong(self) -> None:
        verdict = judge(lambda: {"out": 0.5, "dx": math.nan, "dy": 0.7})
        assert (verdict.status, verdict.error_ratio, verdict.worst_tensor) == ("wrong", None, "dx")


class TestComparison:
    def test_right_contenders_get_a_time_and_a_ratio(self) -> None:
        contender = by(lambda: sum(range(100)))
        rows = compare(ours=contender, theirs=contender)
        assert [row.status for row in rows.values()] == ["ok", "ok"]
        assert rows["ours"].ratio is None
        theirs = rows["theirs"]
        assert theirs.ratio is not None
        assert theirs.ratio_low is not None
        assert theirs.ratio_high is not None
        assert theirs.ratio_low <= theirs.ratio <= theirs.ratio_high
        assert theirs.rounds == len(theirs.samples_s) == 6

    def test_a_wrong_contender_is_never_run(self) -> None:
        wrong = Contender(lambda: Verdict("wrong", "off", 7.0, "dx"), raising(AssertionError("it was prepared")))
        rows = compare(ours=wrong, theirs=by(lambda: None))
        assert (rows["ours"].status, rows["ours"].error_ratio, rows["ours"].time_p50_s) == ("wrong", 7.0, None)
        assert rows["theirs"].time_p50_s is not None
        assert rows["theirs"].ratio is None

    def test_a_raising_contender_is_a_row_with_the_reason(self) -> None:
        rows = compare(
            ours=Contender(right, raising(torch.OutOfMemoryError())),
            theirs=by(raising(RuntimeError("no kernel"))),
        )
        assert [(row.status, row.reason) for row in rows.values()] == [
            ("out of memory", "out of memory"),
            ("failed", "RuntimeError: no kernel"),
        ]

    def test_contenders_too_slow_for_the_budget_are_skipped(self) -> None:
        contender = by(lambda: time.sleep(0.01))
        wrong = Contender(lambda: Verdict("wrong", "off", 7.0, "dx"), raising(AssertionError("it was prepared")))
        rows = compare(replace(BRIEF, limit_seconds=0.05), ours=wrong, theirs=contender)
        assert (rows["ours"].status, rows["ours"].reason, rows["ours"].error_ratio) == ("wrong", "off", 7.0)
        assert (rows["theirs"].status, rows["theirs"].error_ratio) == ("skipped", 0.5)
        assert re.fullmatch(r"6 rounds need 0\.[2-9]\d* s, 0\.05 s are left for them", rows["theirs"].reason)

    def test_a_contender_that_raises_while_it_is_timed_leaves_the_others_their_time(self) -> None:
        calls = iter(range(10))

        def breaks() -> None:
            if next(calls) == 7:  # beyond what is asked before the timing
                raise torch.OutOfMemoryError

        rows = compare(ours=by(breaks), theirs=by(lambda: None))
        ours = rows["ours"]
        assert (ours.status, ours.reason, ours.error_ratio) == ("out of memory", "out of memory", 0.5)
        assert rows["theirs"].time_p50_s is not None
        assert rows["theirs"].ratio is None

    def test_an_error_of_the_device_that_comes_late_is_met_before_the_timing(self) -> None:
        class Device:
            def time(self, run: Run, repeats: int) -> float:
                run()
                raise RuntimeError("an illegal memory access")

        comparison = Comparison("softmax", "", "", "gpu", FORWARD, {"ours": by(lambda: None)})
        (row,) = comparison.measured(Instruments(CPU, Device()), lambda: BRIEF)
        assert (row.status, row.reason) == ("failed", "RuntimeError: an illegal memory access")

    def test_the_plan_is_made_after_judging(self) -> None:
        order: list[str] = []

        def judged() -> Verdict:
            order.append("judged")
            return right()

        def plan() -> Plan:
            order.append("planned")
            return BRIEF

        contenders = {"ours": Contender(judged, lambda: Prepared(lambda: None))}
        Comparison("softmax", "", "", "reference", FORWARD, contenders).measured(INSTRUMENTS, plan)
        assert order == ["judged", "planned"]


class TestOpTiming:
    @pytest.mark.parametrize("op", OPS, ids=OP_NAMES)
    def test_every_direction_is_timed(self, op: Op) -> None:
        op = replace(op, contenders={"ours": op.contenders["ours"]})
        for comparison in op_harness.comparisons(op, op.error_cases[0], CPU, seed=0):
            ours, *_ = comparison.measured(INSTRUMENTS, lambda: BRIEF)
            assert (ours.contender, ours.status) == ("ours", "ok")
            assert ours.rate is not None
            assert ours.rate > 0

    def test_runs_take_the_problems_in_turn(self) -> None:
        op = ops.OPS["gelu"]
        problems = [problem_of(op), problem_of(op)]
        seen: list[int] = []

        def spy(x: Tensor, **options: Any) -> Tensor:
            seen.append(x.data_ptr())
            return op.plain(x, **options)

        run = make_run(spy, problems, FORWARD)
        for _ in range(3):
            run()
        assert seen == [problems[index].inputs[0].data_ptr() for index in (0, 1, 0)]

    def test_a_gpu_gets_problems_enough_to_lose_its_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        op, case = ops.OPS["softmax"], Case({"M": 16, "N": 512}, torch.float32)
        monkeypatch.setattr(op_harness, "_l2_bytes", lambda device: 100_000)
        problems = op_harness._TimedCase(op, case, CPU, 0).problems
        assert sum(problem.n_bytes for problem in problems[1:]) >= 4 * 100_000

    def test_nothing_is_made_for_a_gpu_before_its_turn(self) -> None:
        for op in OPS:
            for case in op.time_cases["cuda"]:
                for comparison in op_harness.comparisons(op, case, torch.device("cuda"), seed=0):
                    assert {row.status for row in comparison.skipped("no time")} == {"skipped"}

    def test_work_is_that_of_hand_counted_cases(self) -> None:
        half = Case({"M": 1000, "N": 1000}, torch.bfloat16)
        for name in ("layer_norm", "softmax"):
            assert ops.OPS[name].work(half, FORWARD).amount == pytest.approx(4e-3)
            assert ops.OPS[name].work(half, BACKWARD).amount == pytest.approx(6e-3)
        single = Case({"N": 10**6}, torch.float32, {"approximate": "none"})
        assert ops.OPS["gelu"].work(single, FORWARD).rate(1e-3) == pytest.approx(8)

    def test_flops_of_attention_are_those_pytorch_counts(self) -> None:
        case = Case({"B": 2, "S": 24, "H": 4, "K": 4, "D": 16}, torch.float32, {"causal": False})
        problem = problem_of(attention.OP, case)
        # Of PyTorch's own kernels the counter knows the plain matrix products on every machine.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            make_run(attention.plain, [problem], FORWARD)()
        whole = attention.work(case, FORWARD)
        assert whole.flops == counter.get_total_flops()
        causal = attention.work(replace(case, options={"causal": True}), FORWARD)
        assert causal.amount == pytest.approx(whole.amount * (24 + 1) / (2 * 24))
        windowed = attention.work(replace(case, options={"causal": True, "window": 3}), FORWARD)
        assert windowed.amount == pytest.approx(whole.amount * (1 + 2 + 3 + 21 * 4) / 24**2)
        assert attention.work(case, BACKWARD).amount / whole.amount == pytest.approx(2.5)
        assert attention.work(case, BOTH).amount / whole.amount == pytest.approx(3.5)
        assert whole.n_bytes == 4 * (4 * 2 * 24 * 4 * 16) + 4 * (2 * 24 * 4)  # q, k, v, out, and a log-sum-exp


class TestModels:
    @pytest.mark.parametrize("name", models.ARCHITECTURES)
    def test_both_have_the_same_parameters_and_answers(self, name: str) -> None:
        family = models._Family(tiny(name), tiny(name).cases["cpu"], CPU, seed=0)
        counts = [sum(p.numel() for p in model.parameters()) for model in family.models.values()]
        assert counts[0] == counts[1]
        for comparison in models.comparisons(tiny(name), CPU, seed=0):
            ours, theirs, *compiled = comparison.measured(INSTRUMENTS, lambda: BRIEF)
            assert [(row.contender, row.status) for row in (ours, theirs)] == [("ours", "ok"), ("torch.nn", "ok")]
            assert [(row.contender, row.status) for row in compiled] in ([], [("torch.compile", "missing")])

    def test_a_model_with_a_wrong_weight_gets_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_all_but_one(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
            loaded(theirs, ours)
            with torch.no_grad():
                next(ours.stack.parameters()).add_(0.01)  # type: ignore[union-attr]

        loaded = models.load_ours
        monkeypatch.setattr(models, "load_ours", load_all_but_one)
        for comparison in models.comparisons(tiny("encoder"), CPU, seed=0):
            ours, theirs, _ = comparison.measured(INSTRUMENTS, lambda: BRIEF)
            assert (ours.status, ours.time_p50_s) == ("wrong", None)
            assert theirs.status == "ok"


class TestRun:
    @pytest.fixture
    def options(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench.Options:
        """A quick run of one op and one model, small, with nothing compiled."""
        monkeypatch.setattr(bench, "ARCHITECTURES", {"encoder": tiny("encoder")})
        monkeypatch.setattr(bench, "QUICK_SECONDS", 0.1)
        monkeypatch.setattr(collect, "collect", lambda *_, **__: [StaticRow(op="softmax", arch=90, skipped="no nvcc")])
        monkeypatch.setattr(
            worlds,
            "emulated_error_rows",
            lambda ops, *_: [worlds.row_without_figure(ops[0], "emulated", "skipped", "-")],
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("COLUMNS", "200")  # in a narrow window the tables wrap what is looked for
        return bench.Options(tmp_path / "run", ("softmax", "encoder"), quick=True, budget_s=60)

    def test_a_quick_run_writes_what_it_prints(
        self, options: bench.Options, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("matplotlib")
        with Console() as console:
            assert bench.run(bench.Task.of(options), console)
        files = {str(path.relative_to(options.output)) for path in options.output.rglob("*") if path.is_file()}
        assert files == {
            "env.json", "plots/errors.png", "plots/rates-encoder.png", "plots/ratios-encoder.png", "results.csv",
            "results.json", "summary.md",
        }  # fmt: skip
        summary = (options.output / "summary.md").read_text()
        printed = capsys.readouterr().out
        for text in ("Environment", "Errors", "Static", "Times", "skipped: no nvcc", "no CUDA device", "training step"):
            assert text in summary
            assert text in printed
        assert f"Run folder: {options.output}" in printed.replace("\n", "")
        results = json.loads((options.output / "results.json").read_text())
        assert {row["obtained"] for row in results["rows"]} == {"measured"}
        times = [row for row in results["rows"] if row["kind"] == "time"]
        assert [row["ratio"] is not None for row in times] == [False, True, False] * 2
        assert [row["status"] for row in times] == ["ok", "ok", "missing"] * 2

    def test_plots_are_skipped_without_matplotlib(
        self, options: bench.Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(bench, "find_spec", lambda name: None)
        with Console() as console:
            assert bench.run(bench.Task.of(replace(options, subjects=("softmax",))), console)
        assert "plots skipped: matplotlib is not installed" in capsys.readouterr().out
        assert not (options.output / "plots").exists()

    def test_what_the_budget_does_not_reach_is_said(self, options: bench.Options) -> None:
        with Console() as console:
            assert bench.run(bench.Task.of(replace(options, budget_s=1)), console)
        rows = json.loads((options.output / "results.json").read_text())["rows"]
        reasons = [row["reason"] for row in rows if row["kind"] == "time"]
        assert reasons == ["the budget of 1 s was spent"] * 6

    def test_a_run_that_breaks_says_where_its_rows_are(
        self, options: bench.Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(bench._Bench, "write", raising(OSError("disk full")))
        with Console() as console, pytest.raises(OSError, match="disk full"):
            bench.run(bench.Task.of(options), console)
        (partial,) = options.output.parent.glob(".run.partial-*")
        assert f"goes on from {partial}" in capsys.readouterr().out

    def test_an_error_of_ours_fails_the_run_and_is_shown(self, options: bench.Options) -> None:
        softmax = ops.OPS["softmax"]
        off = replace(softmax, contenders={**softmax.contenders, "ours": lambda x: torch.softmax(x, -1) + 0.1})
        with pytest.MonkeyPatch.context() as patch, Console() as console:
            patch.setattr(bench, "TIMED_OPS", {"softmax": off})
            assert not bench.run(bench.Task.of(replace(options, subjects=("softmax",))), console)
        assert "times its budget" in (options.output / "summary.md").read_text()

    def test_a_static_world_that_raises_fails_the_run_but_does_not_end_it(
        self, options: bench.Options, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(collect, "collect", raising(FileNotFoundError("no csrc folder")))
        with Console() as console:
            assert not bench.run(bench.Task.of(replace(options, subjects=("softmax",))), console)
        (row,) = json.loads((options.output / "results.json").read_text())["static"]
        assert row["problems"] == ["FileNotFoundError: no csrc folder"]

    def test_a_gpu_times_each_op_too(self, options: bench.Options) -> None:
        counts = {}
        for quick, device in itertools.product((True, False), ("cpu", "cuda")):
            task = bench.Task.of(replace(options, quick=quick, subjects=("softmax",)))
            counts[quick, device] = len(replace(task, device=torch.device(device)).comparisons())
        cases = ops.OPS["softmax"].time_cases
        assert counts == {
            (True, "cpu"): 0,
            (True, "cuda"): 2,
            (False, "cpu"): 2 * len(cases["cpu"]),
            (False, "cuda"): 2 * len(cases["cuda"]),
        }
