"""The static world: what is shipped passes its gates, and each gate, parser and failure does what it says."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from fusedformer import build
from fusedformer.benchmarks.report.tables import static_table
from fusedformer.benchmarks.static import budgets, cache, collect, cuda, sass, triton
from fusedformer.benchmarks.static.row import SHARED_LIMIT, StaticRow, parse_warnings
from fusedformer.kernels.attention import variants as attention_variants
from fusedformer.kernels.variants import Variant

OPS = [pytest.param(op, marks=pytest.mark.op(op)) for op in collect.known_ops()]
# Under pytest-xdist other workers compile too.
JOBS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2

MATMUL = """
import triton
import triton.language as tl

@triton.jit
def matmul_kernel(a, b, c, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK).to(tl.int64)
    offsets = i[:, None] * n + i[None, :]
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, n, BLOCK):
        acc = tl.dot(tl.load(a + (k + offsets)), tl.load(b + (k * n + offsets)), acc)
    tl.store(c + offsets, acc)
"""
LOCAL_ARRAY = """
__global__ void table_fwd_kernel(const float* x, float* y, const int* index) {
  float table[64];
  for (int i = 0; i < 64; ++i) table[i] = x[i * 32 + threadIdx.x];
  float sum = 0.0f;
  for (int i = 0; i < 64; ++i) sum += table[index[i]];
  y[threadIdx.x] = sum;
}
"""
DISASSEMBLY = """
	.target	sm_90
	.section	.text._Z4copyPf,"ax",@progbits
.text._Z4copyPf:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @UP1 LDG.E.LTC128B R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   LDGSTS.E.BYPASS.LTC128B.128 [R4], desc[UR4][R2.64] ;
        /*0040*/                   LDGDEPBAR ;
        /*0050*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0060*/                   EXIT ;
.L_x_0:
        /*0070*/                   BRA `(.L_x_0);
	.section	.text.attention,"ax",@progbits
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, !UPT ;
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0020*/                   STL.64 [R1], R4 ;
        /*0030*/              @P0  LDL.LU R4, [R1] ;
        /*0040*/                   STG.E.ENL2.256 desc[UR4][R2.64], R4, R8 ;
"""
REPORT = """
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to reasons
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to reasons
ptxas warning : Value of threads per SM is out of range
ptxas-blackwell info    : 0 bytes gmem
ptxas info    : Used 238 registers, used 1 barriers
"""


@pytest.mark.static
@pytest.mark.parametrize("arch", collect.ARCHS)
@pytest.mark.parametrize("op", OPS)
def test_every_shipped_variant_passes(op: str, arch: int) -> None:
    rows = collect.collect((arch,), (op,), jobs=JOBS)
    print(static_table(rows).markdown())
    assert rows
    if reason := rows[0].skipped:
        pytest.skip(f"static world: {reason}")
    failed = {f"{row.kernel} {row.variant}": row.verdict for row in rows if not row.passed}
    assert failed == {}


@pytest.mark.slow
def test_the_record_is_what_compilers_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its rows, compiled again: a record that was edited, or written by other compilers, shows."""
    if not cache.RECORD.exists():
        pytest.skip("no record: not a checkout")
    shipped = attention_variants.variants
    monkeypatch.setattr(attention_variants, "variants", lambda arch: shipped(arch)[::29])
    recorded = collect.collect((90,), ("attention",), jobs=JOBS)
    monkeypatch.setattr(cache, "RECORD", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache._record.cache_clear()
    assert collect.collect((90,), ("attention",), jobs=JOBS) == recorded
    cache._record.cache_clear()


def test_every_op_has_static_cases() -> None:
    norms = {"add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"}
    assert norms | {"attention", "bias_activation", "gelu", "glu", "softmax"} <= set(collect.known_ops())


def test_disassembly_is_counted_by_kernel_and_whole_modifier() -> None:
    kernels = {name: sass.count(opcodes) for name, opcodes in sass.parse(DISASSEMBLY).items()}
    assert kernels == {
        "_Z4copyPf": sass.InstructionMix({}, 3, 2, 1, 0, 0),
        "attention": sass.InstructionMix({"HGMMA": 2}, 0, 0, 1, 1, 2),
    }


def test_serialized_wgmma_is_a_problem_and_other_warnings_are_kept() -> None:
    row = StaticRow(op="attention", arch=90, warnings=parse_warnings(REPORT))
    assert len(row.warnings) == 2
    (problem,) = row.problems
    assert "C7511" in problem


@pytest.mark.parametrize(
    ("figures", "problem"),
    [
        ({"spill_bytes": 4}, "4 bytes spilled"),
        ({"stack_bytes": 16}, "16 bytes of stack"),
        ({"local_accesses": 2}, "2 accesses of local memory"),
        ({"shared_bytes": 101_377}, "101377 bytes of shared memory, sm_120 has 101376"),
        ({"narrow_offsets": 2}, "2 pointer offsets of 32 bits, which overflow past 2^31"),
        ({"vectorized": True, "global_stores_128": 1}, "no 128-bit global load"),
        ({"vectorized": True, "global_loads_128": 1}, "no 128-bit global store"),
        ({"steady_masks": 3}, "3 mask instructions in the steady loop"),
        ({"error": "does not compile"}, "does not compile"),
    ],
)
def test_gate(figures: dict[str, int], problem: str) -> None:
    assert StaticRow(op="softmax", arch=120, steady_masks=0).passed
    row = StaticRow(op="softmax", arch=120, **figures)  # type: ignore[arg-type]
    assert row.problems == (problem,)
    assert not row.passed
    assert row.verdict == f"FAILED: {problem}"


def test_instructions_have_a_budget() -> None:
    kernel, variant = "gelu_fwd_kernel", "__nv_bfloat16, GeluErf, 8"
    budget = budgets.instructions(kernel, variant, 90)
    assert budget is not None
    row = StaticRow(op="gelu", kernel=kernel, variant=variant, arch=90, instructions_per_element=budget)
    assert row.passed
    for cost in (budget + 0.5, None):
        (problem,) = dataclasses.replace(row, instructions_per_element=cost).problems
        assert problem == f"{cost} instructions an element, its budget is {budget}"
    assert dataclasses.replace(row, arch=80, instructions_per_element=budget + 0.5).passed
    assert budgets.instructions("gelu_fwd_kernel", "__nv_bfloat16, GeluErf, 1", 90) is None
    assert budgets.instructions("softmax_fwd_kernel", "float, RowShape<Blocks, 4> ", 90) is None
    streaming = [("Centred, true, float, float", 48.5), ("Uncentred, false, __half, float", 10.9)]
    for variant, budget in streaming:
        assert budgets.instructions("norm_fwd_kernel", f"{variant}, RowShape<Blocks, 0> ", 90) == budget


def test_every_activation_kernel_has_a_budget() -> None:
    rows = collect.collect((90,), ("bias_activation", "gelu", "glu"), jobs=JOBS)
    if reason := rows[0].skipped:
        pytest.skip(f"static world: {reason}")
    without = [row for row in rows if row.vectorized and budgets.instructions(row.kernel, row.variant, 90) is None]
    assert without == []


def test_row_survives_json() -> None:
    row = StaticRow(
        op="softmax",
        kernel="k",
        variant="v",
        arch=90,
        matrix={"HMMA": 3},
        warnings=("slow",),
        steady_cycles={"exp": 8.5},
    )
    assert StaticRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_table_has_a_cell_per_row_and_no_figures_where_nothing_was_compiled() -> None:
    rows = [StaticRow(op="softmax", arch=90, registers=40), StaticRow(op="gelu", arch=90, skipped="no nvcc")]
    table = static_table(rows)
    columns = dict(zip(table.columns, zip(*table.lines, strict=True), strict=True))
    assert columns["registers"] == ("40", "")
    assert columns["verdict"] == ("ok", "skipped: no nvcc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"archs": (90, 75)}, r"archs has \[75\]"),
        ({"ops": ("softmaxx",)}, r"ops has \['softmaxx'\]"),
        ({"jobs": 0}, "jobs is 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect.collect(**arguments)  # type: ignore[arg-type]


def test_no_nvcc_is_a_stated_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    (row,) = collect.collect((90,), ("softmax",))
    assert row.skipped.startswith("no nvcc")
    assert row.problems == ()
    assert not row.passed


def test_no_triton_is_a_stated_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "find_spec", lambda name: None)
    (row,) = collect.collect((90,), ("attention",))
    assert row.skipped.startswith("no triton")


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """An empty cache, and a compiler that only keeps a list of what it was asked for."""
    compiled: list[int] = []

    def compile_source(source: Path, arch: int) -> list[StaticRow]:
        compiled.append(arch)
        return [StaticRow(op=source.stem, kernel="gelu_fwd_kernel", arch=arch, registers=32)]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda, "unavailable", lambda: "")
    monkeypatch.setattr(cuda, "compile_source", compile_source)
    monkeypatch.setattr(collect, "_nvcc_version", lambda: "13.0")
    return compiled


def test_second_collect_comes_from_the_cache(compiles: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    first = collect.collect((80, 90), ("gelu",), progress=lambda done, total: seen.append((done, total)))
    assert collect.collect((80, 90), ("gelu",)) == first
    assert sorted(compiles) == [80, 90]
    assert seen == [(1, 2), (2, 2)]


def test_other_compiler_compiles_anew(compiles: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    collect.collect((90,), ("gelu",))
    monkeypatch.setattr(collect, "_nvcc_version", lambda: "13.1")
    collect.collect((90,), ("gelu",))
    assert compiles == [90, 90]


@pytest.mark.parametrize(("old", "new"), [('"registers": 32', '"registers": 33'), ("]", ""), ("\n", "")])
def test_damaged_cache_entry_compiles_anew(compiles: list[int], tmp_path: Path, old: str, new: str) -> None:
    first = collect.collect((90,), ("gelu",))
    (entry,) = (tmp_path / "fusedformer" / "static").iterdir()
    entry.write_text(entry.read_text().replace(old, new))
    assert collect.collect((90,), ("gelu",)) == first
    assert compiles == [90, 90]
    assert cache.load(entry.name) == first


def test_past_the_deadline_only_what_is_known_has_figures(compiles: list[int]) -> None:
    collect.collect((80,), ("gelu",))
    known, late = collect.collect((80, 90), ("gelu",), deadline=time.monotonic())
    assert known.passed
    assert (late.kernel, late.arch, late.skipped) == ("gelu.cu", 90, "the time for it was spent")
    assert compiles == [80]
    (again,) = collect.collect((90,), ("gelu",))
    assert again.passed
    assert static_table([known, late]).notes == ["1 of 2 not compiled."]
    assert static_table([known]).notes == []
    _, folded = static_table([known, late, late]).lines
    assert (folded[2], folded[-1]) == ("2 variants", late.verdict)


def test_failures_are_not_cached(compiles: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = StaticRow(op="gelu", arch=90, error="out of memory")
    monkeypatch.setattr(cuda, "compile_source", lambda source, arch: [failed])
    assert collect.collect((90,), ("gelu",)) == [failed]
    monkeypatch.setattr(cuda, "compile_source", lambda source, arch: [StaticRow(op="gelu", arch=arch)])
    assert collect.collect((90,), ("gelu",))[0].passed


def test_local_array_in_a_cuda_kernel_is_flagged(tmp_path: Path) -> None:
    if reason := cuda.unavailable():
        pytest.skip(f"static world: {reason}")
    source = tmp_path / "table.cu"
    source.write_text(LOCAL_ARRAY)
    (row,) = cuda.compile_source(source, 90)
    assert (row.op, row.kernel) == ("table", "table_fwd_kernel")
    assert row.stack_bytes == 256
    assert row.local_accesses > 0
    assert "no 128-bit global load" in row.problems


def test_cuda_kernel_that_does_not_compile_is_a_failed_row(tmp_path: Path) -> None:
    if reason := cuda.unavailable():
        pytest.skip(f"static world: {reason}")
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void broken_kernel() { undeclared(); }")
    (row,) = cuda.compile_source(source, 90)
    assert "undeclared" in row.error


def matmul(module: str, num_warps: int = 8, num_stages: int = 2) -> Variant:
    return Variant(
        op="matmul",
        kernel="matmul_kernel",
        module=module,
        name="bf16",
        signature={"a": "*bf16", "b": "*bf16", "c": "*fp32", "n": "i32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": 128},
        attrs={(argument,): [["tt.divisibility", 16]] for argument in range(4)},
        num_warps=num_warps,
        num_stages=num_stages,
    )


def test_spills_of_a_triton_kernel_are_flagged_and_the_next_one_compiles(modules: Path) -> None:
    (modules / "planted_matmul.py").write_text(MATMUL)
    (modules / "planted_narrow.py").write_text(MATMUL.replace(".to(tl.int64)", ""))
    with triton.CompilerPool(1) as pool:
        narrow = pool.compile(matmul("planted_narrow"), 80)
        spilled = pool.compile(matmul("planted_matmul", num_warps=2), 80)
        good = pool.compile(matmul("planted_matmul"), 80)
        too_large = pool.compile(matmul("planted_matmul", num_stages=5), 120)
    assert spilled.spill_bytes > 0
    assert spilled.local_accesses > 0
    assert f"{spilled.spill_bytes} bytes spilled" in spilled.problems
    assert good.passed, good.verdict
    assert good.matrix["HMMA"] > 0
    assert 0 < good.global_stores_128 == good.global_stores
    assert good.narrow_offsets == 0
    assert narrow.narrow_offsets
    assert too_large.shared_bytes > SHARED_LIMIT[120]
    assert not too_large.passed


def test_crash_of_the_compiler_is_a_failed_row_and_the_next_one_compiles(modules: Path) -> None:
    (modules / "planted_crash.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (modules / "planted_error.py").write_text(
        "import os\nos.write(2, b'x.py:1: error: bad tile\\ndump\\n')\nraise OSError('no')"
    )
    (modules / "planted_matmul.py").write_text(MATMUL)
    with triton.CompilerPool(1) as pool:
        crashed = pool.compile(matmul("planted_crash"), 90)
        refused = pool.compile(matmul("planted_error"), 90)
        absent = pool.compile(matmul("planted_absent"), 90)
        good = pool.compile(matmul("planted_matmul"), 80)
    assert "died of SIGSEGV" in crashed.error
    assert refused.error == "OSError: no: x.py:1: error: bad tile"
    assert absent.error == "ModuleNotFoundError: No module named 'planted_absent'"
    assert good.passed, good.verdict


def test_compiler_that_hangs_is_a_failed_row(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "planted_hang.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(triton, "TIMEOUT_S", 1.0)
    with triton.CompilerPool(1) as pool:
        assert "did not answer within 1 s" in pool.compile(matmul("planted_hang"), 90).error
        assert pool.compile(matmul("planted_hang"), 90, seconds=0.5).skipped == "the time for it was spent"


def test_sources_of_a_kernel_are_in_several_folders() -> None:
    found = {path.stem for path in triton.sources("fusedformer.kernels.attention.decode.kernel")}
    assert found == {"kernel", "fwd_kernel", "scores", "tiles", "triton_compat"}


def test_sources_of_a_kernel_follow_its_imports(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "planted_kernel.py").write_text("import planted_tiles as tiles\n")
    (modules / "planted_tiles.py").write_text("def load():\n    from planted_types import dot\n")
    (modules / "planted_types.py").write_text("import planted_kernel\n")
    (modules / "planted_other.py").write_text("")
    monkeypatch.syspath_prepend(str(modules))
    assert [path.stem for path in triton.sources("planted_kernel")] == [
        "planted_kernel",
        "planted_tiles",
        "planted_types",
    ]
