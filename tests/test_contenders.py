"""Other implementations: each computes what ours does, or says why it is not here; a fake stands for what is not."""

import importlib
import inspect
import sys
import warnings
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contender_signatures import FLASH_ATTN, LIGER, QUACK, declared_as
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from fusedformer.benchmarks import attention, attention_bias, attention_fp8, attention_varlen
from fusedformer.benchmarks.contenders import flash_attn, flex, plain, rows, sdpa, tutorial
from fusedformer.benchmarks.harness import implementation
from fusedformer.benchmarks.harness.comparison import judge
from fusedformer.benchmarks.harness.implementation import Function, Implementation, MissingError, built, version_of
from fusedformer.benchmarks.harness.instruments import Instruments
from fusedformer.benchmarks.harness.op import BACKWARD, FORWARD, Case, Op, Problem, _TimedCase
from fusedformer.benchmarks.machines import A100, H200
from fusedformer.benchmarks.ops import TIMED_OPS

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
FP8_CASES = [({"B": 2, "S": 65, "H": 2, "K": 2, "D": 32}, FP8), ({"B": 1, "S": 70, "H": 4, "K": 2, "D": 64}, FP8)]


def problem_of(op: Op, sizes: dict[str, int], dtype: torch.dtype = torch.float32, **options: Any) -> Problem:
    return Problem.make(op, Case(sizes, dtype, options), torch.Generator().manual_seed(0))


def dense(**options: Any) -> Problem:
    sizes = {"B": 1, "S": 70, "H": 4, "K": 2, "D": 16}
    return problem_of(attention.OP, sizes, **{"causal": True, **options})


def worst(problem: Problem, function: Function) -> float:
    return max(problem.error_ratios(function).values())


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_plain_attention_is_ours_with_windows_too(causal: bool, window: int | None) -> None:
    problem = dense(causal=causal, window=window)
    for function in (attention.ours, plain.eager, sdpa.sdpa):
        assert worst(problem, function) <= 1


def test_attention_in_blocks_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "BLOCK", 32)
    q, k, v = (x.double().requires_grad_() for x in dense().inputs)
    bias = torch.randn(1, 4, 70, 70, dtype=torch.float64, requires_grad=True)
    for options in ({"causal": True}, {"causal": False}, {"causal": True, "window": 7}):
        results = [f(q, k, v, bias, **options) for f in (plain.eager, plain.in_blocks)]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
        grads = [torch.autograd.grad(out.square().sum(), (q, k, v, bias)) for out in results]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_the_triton_of_the_paper_is_right(causal: bool, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    sizes = {"B": 2, "S": 67, "H": 2, "K": 1, "D": 24}
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU in this run")
    assert worst(problem_of(attention.OP, sizes, dtype, causal=causal), tutorial.TUTORIAL) <= 1


def test_the_triton_of_the_paper_says_what_it_cannot() -> None:
    pytest.importorskip("triton")
    function = tutorial.build()
    q, k, v = dense().inputs
    with pytest.raises(MissingError, match="has no windows"):
        function(q, k, v, causal=True, window=3)
    with pytest.raises(MissingError, match="head dimensions up to 256, got 300"):
        function(*(torch.zeros(1, 4, 1, 300) for _ in range(3)), causal=True)


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_right_dense_biased_and_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it runs without a compiler, on a CPU forward only."""

    def worst_output(problem: Problem, function: Function) -> float:
        return problem.error_ratios_of(problem.results(function, with_gradients=False))["out"]

    monkeypatch.setattr(flex, "_COMPILED", Implementation(lambda: flex_attention))
    sizes = {"B": 2, "S": 40, "H": 2, "K": 1, "D": 16}
    for problem in (dense(), dense(causal=False, window=9), problem_of(attention_bias.OP, sizes, causal=True)):
        assert worst_output(problem, flex.dense()) <= 1
    assert worst_output(problem_of(attention_varlen.OP, sizes, causal=True), flex.packed()) <= 1


class TestPinned:
    def test_math_and_flash_are_right_on_a_cpu_and_cudnn_is_missing(self) -> None:
        found = sdpa.pinned(sdpa.sdpa)
        assert worst(dense(), found["SDPA math"]) <= 1
        verdict = judge(lambda: dense().error_ratios(found["SDPA cuDNN"]))
        assert (verdict.status, verdict.reason) == ("missing", "no such kernel of PyTorch's for these inputs here")

    @pytest.mark.filterwarnings("ignore")
    def test_pytorchs_reasons_are_told(self) -> None:
        def refusing(*inputs: Tensor, **options: Any) -> Tensor:
            warnings.warn("Flash attention kernel not used because: (Triggered internally at x.cpp:1)", stacklevel=1)
            warnings.warn("Expected head_dim <= 256 (Triggered internally at x.cpp:2)", stacklevel=1)
            raise RuntimeError("No available kernel. Aborting execution.")

        with pytest.raises(MissingError, match=r"inputs here: Expected head_dim <= 256$"):
            sdpa.pinned(refusing)["SDPA flash"](torch.zeros(1))

    def test_other_errors_stay_what_they_are(self) -> None:
        def broken(*inputs: Tensor, **options: Any) -> Tensor:
            raise RuntimeError("an illegal memory access")

        verdict = judge(lambda: {"out": sdpa.pinned(broken)["SDPA flash"]()})
        assert (verdict.status, verdict.reason) == ("failed", "RuntimeError: an illegal memory access")


class TestPackages:
    @pytest.fixture
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def install(self, monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)

    @pytest.mark.usefixtures("gpu")
    def test_what_is_not_installed_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(implementation, "find_spec", lambda name: None)
        for name in ("flash-attn 2", "flash-attn 3", "flash-attn 4", "xFormers"):
            verdict = judge(partial(dense().error_ratios, attention.OP.contenders[name]))
            assert (verdict.status, "is not installed" in verdict.reason) == ("missing", True)
        for op, others in rows.OTHERS.items():
            for function in others.values():
                with pytest.raises(MissingError, match="is not installed"):
                    built(function)
            assert set(others) <= set(TIMED_OPS[op].contenders)

    @pytest.mark.usefixtures("gpu")
    @pytest.mark.parametrize(
        ("generation", "module", "unbounded"),
        [(2, "flash_attn", -1), (3, "flash_attn_interface", -1), (4, "flash_attn.cute", None)],
    )
    def test_flash_attention_gets_its_own_words(
        self, generation: int, module: str, unbounded: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        windows = []

        def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[Any, Any]) -> Any:
            windows.append(window_size)
            left = None if window_size[0] in (None, -1) else window_size[0]
            out = plain.eager(q, k, v, causal=causal, window=left)
            return (out, None) if generation == 4 else out

        declared = declared_as(FLASH_ATTN[generation], flash_attn_func)
        self.install(monkeypatch, "flash_attn")
        self.install(monkeypatch, module, flash_attn_func=declared)
        for problem in (dense(), dense(causal=False), dense(window=9)):
            assert worst(problem, flash_attn.dense(generation)) <= 1
        assert set(windows) == {(unbounded, 0), (unbounded, unbounded), (9, 0)}

    @pytest.mark.usefixtures("gpu")
    def test_flash_attention_gets_the_scales_of_float8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool, **scales: Tensor) -> Tensor:
            return attention_fp8.plain(q, k, v, *scales.values(), causal=causal)

        self.install(monkeypatch, "flash_attn_interface", flash_attn_func=declared_as(FLASH_ATTN[3], flash_attn_func))
        alone, grouped = (problem_of(attention_fp8.OP, *case, causal=True) for case in FP8_CASES)
        assert worst(alone, flash_attn.FP8) <= 1
        verdict = judge(partial(grouped.error_ratios, flash_attn.FP8))
        assert (verdict.status, verdict.reason) == ("missing", "its query heads of a key head share a scale")

    @pytest.mark.usefixtures("gpu")
    def test_a_wheel_without_a_backward_is_timed_forward(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(monkeypatch, "fa3_fwd_interface", flash_attn_func=lambda q, k, v, causal, window_size: q)
        contender = flash_attn.dense(3)
        assert contender.forward_only
        op = Op(**{**vars(attention.OP), "contenders": {"flash-attn 3": contender}})
        timed = _TimedCase(op, dense().case, CPU, 0)
        assert (timed.verdict("flash-attn 3", BACKWARD).reason) == "has no backward here"
        assert timed.verdict("flash-attn 3", FORWARD).worst_tensor == "out"

    @pytest.mark.usefixtures("gpu")
    def test_a_package_without_the_function_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(monkeypatch, "flash_attn")
        with pytest.raises(MissingError, match="flash-attn: module 'flash_attn' has no attribute"):
            flash_attn.dense(2).build()

    @pytest.mark.usefixtures("gpu")
    def test_kernels_over_rows_are_called_for_what_ours_compute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        functions: dict[str, Any] = {
            "liger_layer_norm": lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps),
            "liger_rms_norm": lambda x, w, eps, in_place: F.rms_norm(x, x.shape[-1:], w, eps),
            "liger_fused_add_rms_norm": lambda x, r, w, eps, in_place: (F.rms_norm(x + r, x.shape[-1:], w, eps), x + r),
            "liger_softmax": lambda x: x.softmax(-1),
            "liger_cross_entropy": lambda x, t, **options: F.cross_entropy(x, t, **options),
            "liger_swiglu": lambda gate, up: F.silu(gate) * up,
            "liger_geglu": lambda gate, up: F.gelu(gate, approximate="tanh") * up,
        }
        self.install(monkeypatch, "liger_kernel")
        self.install(monkeypatch, "liger_kernel.transformers")
        declared = {name: declared_as(LIGER[name], function) for name, function in functions.items()}
        self.install(monkeypatch, "liger_kernel.transformers.functional", **declared)

        def rmsnorm(x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None, prenorm: bool = False) -> Any:
            if residual is None:
                return functions["liger_rms_norm"](x, w, eps, in_place=False)
            return functions["liger_fused_add_rms_norm"](x, residual, w, eps, in_place=False)

        of_quack = {
            "rmsnorm": rmsnorm,
            "softmax": functions["liger_softmax"],
            "cross_entropy": functions["liger_cross_entropy"],
        }
        declared = {name: declared_as(QUACK[name], function) for name, function in of_quack.items()}
        self.install(monkeypatch, "quack", **declared)
        for name, others in rows.OTHERS.items():
            problem = Problem.make(TIMED_OPS[name], TIMED_OPS[name].error_cases[0], torch.Generator().manual_seed(0))
            statuses = {judge(partial(problem.error_ratios, function)).status for function in others.values()}
            assert statuses <= {"ok", "missing"}
            assert "ok" in statuses or name == "glu"  # its first case is geglu by erf, which they do not have


class TestLiger:
    """As it is installed; under Triton's interpreter, which its other kernels ask for what a compiler alone has."""

    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("liger_kernel.transformers.functional")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    @pytest.mark.parametrize("name", LIGER)
    def test_it_declares_what_we_call(self, name: str) -> None:
        found = inspect.signature(getattr(importlib.import_module("liger_kernel.transformers.functional"), name))
        known = inspect.signature(LIGER[name])
        told = [[(p.name, p.kind, p.default) for p in one.parameters.values()] for one in (found, known)]
        assert told[0] == told[1]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles for the GPU in this run")
    @pytest.mark.parametrize(
        ("op", "contender"), [("softmax", rows.LIGER), ("cross_entropy", f"{rows.LIGER}, of a copy")]
    )
    def test_its_kernels_are_right(self, op: str, contender: str) -> None:
        case = TIMED_OPS[op].error_cases[0]
        problem = Problem.make(TIMED_OPS[op], case, torch.Generator().manual_seed(0))
        assert worst(problem, built(rows.OTHERS[op][contender])) <= 1


class TestFloat8:
    """A budget of float8 is wide, but not so wide that a wrong answer passes."""

    @pytest.mark.parametrize("case", FP8_CASES, ids=str)
    def test_rounded_weights_pass_and_other_answers_do_not(self, case: tuple[dict[str, int], torch.dtype]) -> None:
        problem = problem_of(attention_fp8.OP, *case, causal=True)
        plain_ratio = worst(problem, attention_fp8.plain)
        assert 0.3 < plain_ratio <= 0.5  # of a budget of twice its error, and an ulp
        for name in ("ours", "ours, bfloat16", "SDPA math, bfloat16"):
            assert worst(problem, attention_fp8.OP.contenders[name]) < plain_ratio

        def off(*inputs: Tensor, causal: bool) -> Tensor:
            return attention_fp8.ours(*inputs, causal=causal) * 1.05

        def unscaled(*inputs: Tensor, causal: bool) -> Tensor:
            scales = [torch.ones_like(x) for x in inputs[3:6]]
            return attention_fp8.ours(*inputs[:3], *scales, causal=causal)

        for function in (off, unscaled):
            assert worst(problem, function) > 1

    def test_blocks_of_queries_are_all_of_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = problem_of(attention_fp8.OP, *FP8_CASES[1], causal=True)
        whole = problem.call(attention_fp8.plain)
        monkeypatch.setattr(attention_fp8, "BLOCK", 16)
        assert torch.equal(problem.call(attention_fp8.plain), whole)

    def test_bytes_and_peaks_are_those_of_float8(self) -> None:
        case = Case({"B": 2, "S": 24, "H": 4, "K": 2, "D": 16}, FP8, {"causal": False})
        work = attention_fp8.work(case, FORWARD)
        q, k = 2 * 24 * 4 * 16, 2 * 24 * 2 * 16
        assert work.n_bytes == q + 2 * k + 2 * q + 4 * (2 * 24 * 4) + 4 * 2 * (4 + 2 + 2)  # out, lse, descales
        assert work.flops == 4 * 2 * 4 * 24 * 24 * 16
        share = partial(Instruments.share, rate=989.5, unit="TFLOP/s", dtype="float8_e4m3fn")
        assert share(H200) == pytest.approx(0.5)
        assert share(A100) == pytest.approx(989.5 / 312)  # which computes it in 16 bits


def test_versions_are_told() -> None:
    assert version_of("ours", attention.ours).startswith("fusedformer") or not version_of("ours", attention.ours)
    assert version_of("SDPA flash", attention.plain) == f"torch {torch.__version__}"
    assert version_of("x", Implementation(lambda: attention.plain, "no-such-package")) == ""


def test_compiling_for_a_cpu_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="to compile for a CPU"):
        implementation.compiled(attention.plain).build()
