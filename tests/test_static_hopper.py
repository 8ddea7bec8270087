"""The Hopper kernels in the static world: what is on record passes every gate, and each gate sees what it is for."""

import itertools
import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fusedformer.benchmarks.static import loops
from fusedformer.benchmarks.static_hopper import collect, explore, model, protocol
from fusedformer.benchmarks.static_hopper.row import FENCES, UNFENCED_STORES, WAITS, HopperRow
from fusedformer.kernels.attention.hopper import tuning
from fusedformer.kernels.attention.hopper.variants import HopperVariant, variants

pytestmark = pytest.mark.op("attention")

VERSIONS = ("3.6.0", "3.7.1", "3.9.0")
DEVELOPED_WITH = "3.7.1"
# Right, but slower than it could be: what does not fit into registers there, in windows with sinks above all.
SPILLING = {
    ("3.9.0", "attention_hopper_fwd_kernel bf16 d64 window sinks"),
    ("3.9.0", "attention_hopper_fwd_kernel bf16 d96 window sinks"),
    ("3.9.0", "attention_hopper_fwd_kernel bf16 d128 window sinks"),
    ("3.9.0", "attention_hopper_fwd_kernel bf16 d256 window sinks"),
    ("3.9.0", "attention_hopper_fwd_kernel bf16 d256 causal"),
    ("3.9.0", "attention_hopper_fwd_persistent_kernel bf16 d64 persistent window sinks"),
    ("3.9.0", "attention_hopper_fwd_persistent_kernel bf16 d128 persistent window sinks"),
}
GPU_RECORD = collect.RECORD.with_name("hopper_h200.json")
FWD = "attention_hopper_fwd_kernel"
GOOD = HopperRow(op="attention", kernel=FWD, arch=90, registers=168, waits=WAITS[FWD], fences=FENCES)

PTX = """
	wgmma.wait_group.sync.aligned 1;
	bar.sync 	2, 128;
	@%p1 mbarrier.arrive.shared::cta.b64 _, [%r1], 1;
	stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r2 + 0], {%r3, %r4, %r5, %r6};
	fence.proxy.async.shared::cta;
	bar.sync 	2, 128;
	@%p2 cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%rd2, {%r4, %r5, %r6, %r7}], [%r8];
$L__BB0_1:
	st.shared.b32 [ %r9 + 0 ], %r10;
	bra.uni 	$L__BB0_2;
	st.shared.v2.b32 	[global_smem+67576], {%r1, %r2};
	mbarrier.arrive.shared::cta.b64 _, [%r1], 1;
"""
SASS = """
	.section	.text.kernel,"ax",@progbits
.L_x_0:
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R88, R152, gdesc[UR8].tnspB, R88 ;
        /*0020*/                   MUFU.EX2 R3, R4 ;
        /*0030*/              @P0  BRA `(.L_x_0) ;
        /*0040*/                   EXIT ;
"""


def _rows(compiler: str) -> dict[str, HopperRow]:
    known = collect.recorded(compiler)
    return {key: HopperRow.from_dict(row) for key, row in known.items()}


def _is_everywhere(variant: HopperVariant) -> bool:
    """Whether every version of Triton has it on record: each row in bfloat16, causal, and gradients in a window."""
    masks = [("causal",)] + [("window",)] * (variant.row.kernel in ("dq", "dkdv", "fused"))
    return variant.dtype == "bf16" and variant.features in masks


@pytest.mark.static
@pytest.mark.parametrize("compiler", VERSIONS)
def test_every_shipped_variant_is_on_record_and_passes(compiler: str) -> None:
    """Who changes a kernel records it anew: python -m fusedformer.benchmarks.static_hopper.collect, by each Triton."""
    if not collect.RECORD.exists():
        pytest.skip("no record: not a checkout")
    rows = _rows(compiler)
    chosen = [v for v in variants() if compiler == DEVELOPED_WITH or _is_everywhere(v)]
    missing = [f"{variant.row.kernel} {variant}" for variant in chosen if collect.key(variant) not in rows]
    assert missing == []
    failed = {f"{row.kernel} {row.variant}" for row in rows.values() if not row.passed}
    assert failed == {name for version, name in SPILLING if version == compiler}
    assert {row.triton for row in rows.values()} == {compiler}


@pytest.mark.slow
@pytest.mark.static
def test_the_record_is_what_the_compiler_gives() -> None:
    variant = HopperVariant(tuning.TABLE[0], features=("causal",))
    (row,) = collect.collect([variant])
    recorded = collect.recorded(row.triton)
    assert collect.key(variant) in recorded, f"Triton {row.triton} has no record"
    assert collect.compile.compile_apart(variant) == row


def test_the_table_says_what_is_on_record() -> None:
    """Of each row: the model's figures of the causal variant, by the Triton that is developed with."""
    if not collect.RECORD.exists():
        pytest.skip("no record: not a checkout")
    rows = _rows(DEVELOPED_WITH)
    for row in itertools.chain(tuning.TABLE, *tuning.ON_REQUEST.values()):
        features = ("causal",) if row.serves(["causal"]) else ()
        found = rows[collect.key(HopperVariant(row, features=features))]
        expected = tuning.Predicted(round(found.predicted_tflops), round(found.most_tflops), found.bound)
        assert row.evidence == expected, f"{row.kernel} {row.head_dim}/{row.head_dim_v}"
    sizes = {(row.head_dim, row.head_dim_v): row for row in tuning.TABLE if row.kernel == "fwd"}
    assert set(tuning.SCORED) == {(feature, *size) for feature in ("softcap", "alibi") for size in sizes}
    for (feature, *size), evidence in tuning.SCORED.items():
        found = rows[collect.key(HopperVariant(sizes[size[0], size[1]], features=("causal", feature)))]
        expected = tuning.Predicted(round(found.predicted_tflops), round(found.most_tflops), found.bound)
        assert evidence == expected, f"{feature} {size}"


def test_a_row_is_in_use_unasked_only_if_it_is_on_record_as_correct_on_an_h200() -> None:
    recorded = {(row.kernel, row.head_dim, row.head_dim_v) for row in tuning.TABLE if row.recorded}
    known = json.loads(GPU_RECORD.read_text()) if GPU_RECORD.exists() else []
    assert recorded <= {tuple(entry) for entry in known}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"waits": (0, 0)}, "waits of the steady loop (0, 0), designed (1, 0)"),
        ({"early_arrivals": 2}, "2 arrivals that do not wait for all threads"),
        ({"unfenced_stores": 1}, "1 TMA stores without a fence before them"),
        ({"fences": 2}, "2 fences of the async proxy, designed 3"),
        ({"spill_bytes": 8}, "8 bytes spilled"),
        ({"shared_bytes": 232_449}, "232449 bytes of shared memory, sm_90 has 232448"),
        ({"warnings": ("(C7511) Potential Performance Loss",)}, "(C7511) Potential Performance Loss"),
        ({"error": "no such thing"}, "no such thing"),
    ],
    ids=str,
)
def test_every_gate_sees_what_it_is_for(change: dict[str, object], problem: str) -> None:
    assert GOOD.passed
    row = HopperRow.from_dict(json.loads(json.dumps(GOOD.to_dict() | change)))
    assert row.problems == (problem,)


def test_a_product_of_two_parts_is_waited_for_as_two() -> None:
    tailed = GOOD.to_dict() | {"variant": "bf16 d96 causal", "waits": (2, 0)}
    assert HopperRow.from_dict(tailed).passed
    assert not HopperRow.from_dict(tailed | {"variant": "bf16 d128 causal"}).passed
    assert not HopperRow.from_dict(tailed | {"waits": (1, 0)}).passed


def test_consumers_of_different_work_have_a_loop_each() -> None:
    wide = next(variant for variant in variants() if variant.row.built_as == "dkdv_wide")
    assert len(collect.compile._steady_loops(variants()[0], SASS, "kernel")) == 1
    with pytest.raises(RuntimeError, match="1 loops with matrix instructions, expected one of each consumer"):
        collect.compile._steady_loops(wide, SASS, "kernel")
    second = SASS[SASS.index(".L_x_0:") :].replace("L_x_0", "L_x_1").replace("/*00", "/*01")
    assert len(collect.compile._steady_loops(wide, SASS.replace("EXIT", "NOP") + second, "kernel")) == 2
    with pytest.raises(RuntimeError, match="no loop with matrix"):
        collect.compile._steady_loops(variants()[0], SASS.replace("HGMMA", "FFMA"), "kernel")


def test_a_tile_from_threads_to_threads_needs_no_fence() -> None:
    kernel = "attention_hopper_dkdv_wide_kernel"
    good = GOOD.to_dict() | {"kernel": kernel, "waits": WAITS[kernel], "unfenced_stores": UNFENCED_STORES[kernel]}
    assert HopperRow.from_dict(good).passed
    (problem,) = HopperRow.from_dict(good | {"unfenced_stores": UNFENCED_STORES[kernel] + 1}).problems
    assert problem == "3 TMA stores without a fence before them"


def test_three_consumers_have_a_fence_each() -> None:
    three = GOOD.to_dict() | {"consumers": 3, "fences": FENCES + 1}
    assert HopperRow.from_dict(three).passed
    (problem,) = HopperRow.from_dict(three | {"fences": FENCES}).problems
    assert problem == f"{FENCES} fences of the async proxy, designed {FENCES + 1}"


def test_order_is_read_in_ptx() -> None:
    assert (protocol.early_arrivals(PTX), protocol.unfenced_stores(PTX), protocol.fences(PTX)) == (0, 0, 1)
    assert protocol.early_arrivals(PTX.replace("bar.sync", "nop", 1)) == 1
    assert protocol.unfenced_stores(PTX.replace("fence.proxy.async", "nop")) == 1
    late = PTX.replace("\tfence.proxy.async.shared::cta;\n\tbar.sync \t2, 128;", "\tfence.proxy.async.shared::cta;")
    assert protocol.unfenced_stores(late) == 1


def test_the_busiest_unit_bounds_a_loop() -> None:
    loop = loops.steady_loop(SASS, "kernel")
    assert loop is not None
    found = model.bound([loop], copied_bytes=0)
    # Two consumers: 2 products of 64 x 128 x 16 each, at 2048 multiply-adds a cycle for 4 warps of each.
    assert found.cycles["matrix"] == 2 * 2 * 64 * 128 * 16 / 2048
    # B of both products, and A of the one that does not take it from registers, at 128 bytes a cycle.
    assert found.cycles["shared"] == 2 * (2 * 128 + 64) * 16 * 2 / 128
    assert (found.unit, found.most_tflops) == ("matrix", pytest.approx(989, rel=0.001))
    three = model.bound([loop], copied_bytes=0, consumers=3)
    assert three.cycles["matrix"] == 1.5 * found.cycles["matrix"]
    assert (three.most_tflops, three.tflops >= found.tflops) == (found.most_tflops, True)
    by_turns = model.bound([loop, loop], copied_bytes=0)
    assert by_turns.cycles == found.cycles
    assert by_turns.tflops == found.tflops
    more = model.bound([loop], copied_bytes=128 * 1000)
    assert more.cycles["shared"] == found.cycles["shared"] + 1000
    assert more.unit == "shared"
    assert more.most_tflops == pytest.approx(989 * more.cycles["matrix"] / more.cycles["shared"], rel=0.001)


def test_a_product_of_8_bits_is_two_in_as_many_cycles() -> None:
    in_16 = loops.steady_loop(SASS, "kernel")
    in_8 = loops.steady_loop(SASS.replace("HGMMA.64x128x16.F32.BF16", "QGMMA.64x128x32.F32.E4M3.E4M3"), "kernel")
    assert in_16 is not None
    assert in_8 is not None
    expected, found = (model.bound([loop], copied_bytes=0) for loop in (in_16, in_8))
    assert (found.cycles, found.unit) == (expected.cycles, expected.unit)
    assert found.most_tflops == pytest.approx(2 * expected.most_tflops, rel=0.001)
    assert found.tflops == pytest.approx(2 * expected.tflops, rel=0.001)


def test_a_variant_that_does_not_compile_carries_its_error() -> None:
    row = tuning.Row("fwd", 64, 64, 48, 2, tuning.UNKNOWN)  # no power of two
    found = collect.compile.compile_apart(HopperVariant(row))
    assert not found.compiled
    assert found.problems == (found.error,)
    assert "power of 2" in found.error


def test_the_record_is_written_a_version_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "RECORD", tmp_path / "record.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(collect.compile, "compile_apart", lambda variant: GOOD)
    seen = []
    chosen = variants()[:2]
    for compiler in ("1.0", "2.0", "2.0"):
        monkeypatch.setattr(collect, "version", lambda package, compiler=compiler: compiler)
        rows = collect.collect(chosen, progress=lambda done, total: seen.append((done, total)), record=True)
        assert rows == [GOOD, GOOD]
        monkeypatch.setattr(collect.compile, "compile_apart", lambda variant: GOOD)
    assert seen == [(1, 2), (2, 2)] * 3
    assert {compiler: len(collect.recorded(compiler)) for compiler in ("1.0", "2.0", "3.0")} == {
        "1.0": 2,
        "2.0": 2,
        "3.0": 0,
    }


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No record and an empty cache, as beside a new wheel, and a compiler that keeps a list of what it was given."""
    names: list[str] = []

    def compile_apart(variant: HopperVariant) -> HopperRow:
        names.append(str(variant))
        time.sleep(0.02 * (len(names) == 1))  # so that the first one is not done first
        return replace(GOOD, variant=str(variant))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(collect, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(collect.compile, "compile_apart", compile_apart)
    return names


def test_without_a_record_a_second_run_compiles_nothing(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = variants()[:6]
    names = [str(variant) for variant in chosen]
    rows = collect.collect(chosen)
    assert [row.variant for row in rows] == names
    assert sorted(compiled) == sorted(names)
    assert collect.collect(chosen) == rows
    assert len(compiled) == len(names)
    monkeypatch.setattr(collect, "version", lambda package: "0.1")
    assert collect.collect(chosen[:1], jobs=1) == rows[:1]
    assert compiled[len(names) :] == names[:1]
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/other/ptxas")
    collect.collect(chosen[:1])
    assert compiled[len(names) :] == names[:1] * 2


@pytest.mark.parametrize(("old", "new"), [('"registers": 168', '"registers": 169'), ("]", ""), ("\n", "")])
def test_a_damaged_entry_of_the_cache_is_compiled_anew(compiled: list[str], tmp_path: Path, old: str, new: str) -> None:
    chosen = variants()[:1]
    rows = collect.collect(chosen)
    (entry,) = (tmp_path / "fusedformer" / "static_hopper").iterdir()
    entry.write_text(entry.read_text().replace(old, new))
    assert collect.collect(chosen) == rows
    assert collect.collect(chosen) == rows
    assert len(compiled) == 2


def test_a_compiler_that_hangs_is_a_failed_row_and_the_others_are_compiled(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    late, *others = variants()[:4]
    compile_apart = collect.compile.compile_apart

    def hang(variant: HopperVariant) -> HopperRow:
        if variant == late:
            raise subprocess.TimeoutExpired(["python"], 600.0)
        return compile_apart(variant)

    monkeypatch.setattr(collect.compile, "compile_apart", hang)
    first, *rest = collect.collect([late, *others])
    assert first.problems == ("the compiler did not answer within 600 s",)
    assert (first.kernel, first.variant) == (late.kernel, str(late))
    assert [row.variant for row in rest] == [str(variant) for variant in others]
    monkeypatch.setattr(collect.compile, "compile_apart", compile_apart)
    assert collect.collect([late, *others])[0].passed  # a failure is not kept
    with pytest.raises(ValueError, match="jobs is 0"):
        collect.collect(others, jobs=0)


def test_the_design_space_holds_what_is_shipped() -> None:
    shipped = {(row.kernel, row.head_dim, row.head_dim_v, row.block, row.stages) for row in tuning.TABLE}
    explored = {(row.kernel, row.head_dim, row.head_dim_v, row.block, row.stages) for row in explore.candidates()}
    assert shipped <= explored
    used = {(explore._design(row), explore._use(row)) for row in explore.candidates()}
    assert {(explore._design(row), "on request") for rows in tuning.ON_REQUEST.values() for row in rows} <= used
    (first,) = (row for row in explore.candidates() if row == explore._design(tuning.TABLE[0]))
    lines = explore.table({first: GOOD}).lines
    assert [line[-1] for line in lines].count("ok") == 1
    (line,) = (line for line in lines if line[-1] == "ok")
    assert line[:4] == ("fwd", "64/64", "128", "2")
    assert line[-2] == "shipped"


@pytest.mark.parametrize(
    ("kernel", "sizes", "padded"),
    [
        ("fwd", (96, 96), "632 to 742"),  # of 842 to 989, 3 / 4
        ("fwd", (192, 128), "709 to 733"),  # of 851 to 880, 320 / 384
        ("dq", (192, 128), "495 to 495"),  # of 742, 512 / 768
        ("fused", (96, 96), "593 to 593"),  # of 791, 3 / 4
        ("fwd", (128, 128), ""),
    ],
)
def test_a_row_with_tails_is_faster_than_a_padded_one(kernel: str, sizes: tuple[int, int], padded: str) -> None:
    (row,) = (row for row in tuning.TABLE if (row.kernel, (row.head_dim, row.head_dim_v)) == (kernel, sizes))
    assert explore._padded(row) == padded
    for row in (row for row in tuning.TABLE if any(row.tails)):
        expected, most = map(int, explore._padded(row).split(" to "))
        assert row.evidence.tflops > expected
        assert row.evidence.most_tflops > most
