"""The steady loop of attention: found in the machine code, without masks, and as fast as the tile table predicts."""

from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fusedformer.benchmarks.report.tables import static_table
from fusedformer.benchmarks.static import loops, model, triton
from fusedformer.benchmarks.static.row import StaticRow
from fusedformer.kernels.attention import tuning
from fusedformer.kernels.attention import variants as attention_variants
from fusedformer.kernels.attention.variants import Setting
from fusedformer.kernels.variants import Variant

# A loop without matrix instructions around two with them; one of these waits in code that lies behind the exit.
LOOPS = """
	.section	.text.other,"ax",@progbits
.L_x_9:
        /*0000*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0010*/              @P0  BRA `(.L_x_9) ;
	.section	.text.attention,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   MOV R2, R3 ;
.L_x_1:
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR16], R24 ;
        /*0030*/             @!P1  BRA `(.L_x_5) ;
.L_x_2:
        /*0040*/                   SEL R9, RZ, 0x10, P1 ;
        /*0050*/                   SEL R8, R9, RZ, P2 ;
        /*0060*/                   ISETP.NE.U32.AND P2, PT, R8, RZ, PT ;
        /*0070*/                   LEA R41, R40, UR15, 0x3 ;
        /*0080*/                   SEL R40, R40, RZ, P1 ;
        /*0090*/                   BRA.U UP0, `(.L_x_1) ;
.L_x_3:
        /*00a0*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR16], R24 ;
        /*00b0*/                   FSEL R4, R4, -INF , P1 ;
        /*00c0*/                   FSEL R5, R5, -INF , P2 ;
        /*00d0*/                   SEL R6, R6, RZ, P3 ;
        /*00e0*/                   SEL R60, R6, RZ, P2 ;
        /*00f0*/                   PRMT R7, R5, 0x5410, R60 ;
        /*0100*/                   FADD R4, R6, R60 ;
        /*0110*/                   USEL UR4, UR4, URZ, !UP0 ;
        /*0120*/                   STS [R4], R7 ;
        /*0130*/                   MUFU.EX2 R4, R4 ;
        /*0140*/                   MUFU.EX2 R5, R5 ;
        /*0150*/             @!P4  CALL.REL.NOINC `(.L_x_4) ;
        /*0160*/                   BRA `(.L_x_3) ;
.L_x_4:
        /*0170*/              @P0  BRA `(.L_x_0) ;
        /*0180*/                   EXIT ;
.L_x_5:
        /*0190*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R0 ;
        /*01a0*/             @!P1  BRA `(.L_x_5) ;
        /*01b0*/                   BRA `(.L_x_2) ;
"""
BODY = """
        HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24
        HGMMA.64x128x16.F32.BF16 R24, R152, gdesc[UR16].tnspB, R24, gsb0
        MUFU.EX2 R4, R4
        FFMA R4, R4, R5, R6
        IMAD.MOV.U32 R4, RZ, RZ, R6
        FMNMX R4, R4, R5, !PT
        LDSM.16.M88.4 R4, [R5]
        LDGSTS.E.BYPASS.LTC128B.128 [R4], desc[UR4][R2.64]
        UIADD3 UR4, UR4, 0x1, URZ
        @!PT LDS RZ, [RZ]
"""


def loop(*lines: str) -> loops.Loop:
    """The loop of these instructions, in a kernel of its own."""
    code = [".section .text.k,", ".L_x_0:", *(f"/*0000*/ {line} ;" for line in lines), "/*0000*/ @P0 BRA `(.L_x_0) ;"]
    (found,) = loops.matrix_loops("\n".join(code), "k")
    return found


def test_loops_are_found_in_the_order_of_the_code_and_the_steady_one_is_the_shortest() -> None:
    steady, masked = loops.matrix_loops(LOOPS, "attention")
    names = [instruction.mnemonic for instruction in steady.body]
    assert names == ["HGMMA", "BRA", "SEL", "SEL", "ISETP", "LEA", "SEL", "BRA", "SYNCS", "BRA", "BRA"]
    assert len(masked.body) == 13
    assert loops.steady_loop(LOOPS, "attention") == steady
    assert loops.steady_loop(LOOPS, "absent") is None


def test_selects_of_values_are_masks_and_those_of_indices_are_not() -> None:
    steady, masked = loops.matrix_loops(LOOPS, "attention")
    assert steady.masks == 0  # the bytes of a copy, and a ring's index, read in the next iteration
    assert masked.masks == 4
    assert loop("HGMMA.64x8x16.F32 R24, R152, gdesc[UR16], R24", "SEL R154, R154, RZ, P1").masks == 1
    assert loop("HGMMA.64x8x16.F32 R24, R152, gdesc[UR16], R24", "SEL R154, R154, RZ, P1", "STS [R5], R154").masks == 1


def test_cycles_of_each_unit() -> None:
    """8 warps on sm_90, where an SM does 2048 multiply-adds, 16 exponentials, 128 or 64 others in a cycle."""
    prediction = model.predict(90, loop(*BODY.strip().splitlines()), warps=8, programs=1)
    assert prediction.cycles == {
        "matrix": 2 * (2 * 64 * 128 * 16) / 2048,  # two warpgroups, two instructions
        "shared": (2 * (64 + 128 + 128) * 16 * 2 + 8 * (512 + 512)) / 128,  # operands; LDSM and LDGSTS
        "exp": 16,
        "float32": 2 * 2,
        "arithmetic": 4,
        "issue": 11 * 8 / 4,
        "l2": round(8 * 512 / (5120 / 132), 1),
    }  # fmt: skip
    assert prediction.bound == "matrix + issue"
    flop = 2 * 2 * 2 * 64 * 128 * 16
    assert prediction.tflops == pytest.approx(132 * 1.83e9 * flop / (256 + 22) / 1e12, rel=1e-3)


def test_programs_overlap_but_for_chance_meetings() -> None:
    def cycles(programs: int) -> float:
        return model._cycles_per_iteration({"matrix": 100.0, "exp": 100.0}, 0.0, programs)

    # Balanced phases of n programs: (n + 1) / n times a phase.
    assert [cycles(programs) for programs in (1, 2, 4)] == pytest.approx([200, 150, 125])
    assert model._cycles_per_iteration({"matrix": 100.0, "exp": 40.0}, 60.0, 1) == 200


def test_loads_to_registers_are_waited_for() -> None:
    ahead = loop("HGMMA.64x128x16.F32 R24, gdesc[UR16], R24", "LDGSTS.E.128 [R4], desc[UR4][R2.64]")
    late = loop("HGMMA.64x128x16.F32 R24, gdesc[UR16], R24", "LDG.E.128 R4, desc[UR4][R2.64]")
    assert model.predict(90, late, 4, 1).cycles == model.predict(90, ahead, 4, 1).cycles | {"load": 260}
    assert model.predict(90, late, 4, 1).tflops < model.predict(90, ahead, 4, 1).tflops / 2


def test_more_bytes_than_the_l2_cache_gives_bind() -> None:
    copies = ["LDGSTS.E.128 [R4], desc[UR4][R2.64]"] * 64
    assert model.predict(90, loop("HGMMA.64x8x16.F32 R24, R4, gdesc[UR16], R24", *copies), 4, 2).bound == "l2"


def test_unknown_matrix_instruction_is_no_silent_zero() -> None:
    with pytest.raises(ValueError, match="HGMMA"):
        model.predict(90, loop("HGMMA.SP.64x8x16.F32 R24, R4, gdesc[UR16], R24"), 4, 1)


@pytest.mark.parametrize(("arch", "tflops"), [(80, 312), (90, 989)])
def test_peak_is_that_of_the_data_sheet(arch: int, tflops: int) -> None:
    chip = model.CHIPS[arch]
    assert 2 * max(chip.matrix_rates.values()) * chip.sms * chip.clock_ghz / 1000 == pytest.approx(tflops, rel=2e-3)


@pytest.mark.parametrize(
    ("warps", "registers", "shared_bytes", "programs"),
    [
        (8, 255, 0, 1),
        (4, 255, 0, 2),
        (4, 168, 0, 3),
        (4, 161, 0, 3),
        (8, 32, 0, 8),
        (4, 32, 100_000, 2),
        (4, 32, 232_448, 1),
    ],
)
def test_programs_of_an_sm(warps: int, registers: int, shared_bytes: int, programs: int) -> None:
    assert model.programs_per_sm(90, warps, registers, shared_bytes) == programs


def test_table_shows_the_loop_and_what_it_predicts() -> None:
    row = StaticRow(
        op="attention",
        arch=90,
        steady_cycles={"exp": 544.0, "matrix": 1024.2},
        predicted_tflops=652.8,
        bound="matrix + exp",
    )
    table = static_table([row])
    cells = dict(zip(table.columns, table.lines[0], strict=True))
    assert cells["steady loop (cycles)"] == "matrix 1024, exp 544"
    assert cells["predicted"] == "653 TFLOP/s, matrix + exp"


def test_what_promises_a_steady_loop() -> None:
    promises = {(variant.kernel, variant.name): variant.has_steady_loop for variant in attention_variants.variants(90)}
    for kernel in ("attention_fwd_kernel", "attention_bwd_dq_kernel", "attention_bwd_dkdv_kernel"):
        assert promises[kernel, "bf16 d128 causal"]
        assert promises[kernel, "bf16 d64 window sinks packed"]
        assert promises[kernel, "fp16 d128 causal"]
        assert not promises[kernel, "bf16 d128 causal mask"]
        assert not promises[kernel, "fp32 d64 causal"]
        assert not promises[kernel, "bf16 d64 causal exact"]


def shipped(kernel: str, head_dim: int, arch: int = 90) -> Variant:
    return attention_variants.variant(kernel, arch, Setting(torch.bfloat16, head_dim, ("causal",)))


@pytest.mark.static
@pytest.mark.op("attention")
@pytest.mark.parametrize("kernel", ["fwd", "dkdv"])
def test_masks_are_in_the_boundary_loop_alone_and_one_planted_in_the_steady_loop_is_found(
    kernel: str, modules: Path
) -> None:
    variant = shipped(kernel, 64)
    spec = find_spec(variant.module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    assert source.count("            False, False, PRECISION") == 1
    modules.joinpath("planted_steady.py").write_text(
        source.replace("False, False, PRECISION", "True, False, PRECISION")
    )
    with triton.CompilerPool(1) as pool:
        good = pool.compile(variant, 90)
        planted = pool.compile(replace(variant, module="planted_steady"), 90)
    assert good.passed, good.verdict
    assert planted.problems == (f"{planted.steady_masks} mask instructions in the steady loop",)
    assert (planted.steady_masks or 0) >= 64 * 64 // (32 * variant.num_warps)  # one for each score


@pytest.mark.static
@pytest.mark.op("attention")
def test_promised_loop_that_is_absent_is_an_error(modules: Path) -> None:
    variant = attention_variants.variant("fwd", 90, Setting(torch.float32, 64))
    with triton.CompilerPool(1) as pool:
        row = pool.compile(replace(variant, has_steady_loop=True), 90)
    assert row.error == "RuntimeError: no loop with matrix instructions, though a steady loop is promised"


@pytest.mark.static
@pytest.mark.op("attention")
@pytest.mark.parametrize(("kernel", "head_dim"), [("fwd", 128), ("dq", 64), ("dkdv", 64)])
def test_the_table_says_what_the_model_does(kernel: str, head_dim: int, modules: Path) -> None:
    """Of some rows; the slow test has all."""
    check_prediction(tuning.row_of(kernel, 90, torch.bfloat16, head_dim), 90)


@pytest.mark.slow
@pytest.mark.static
@pytest.mark.op("attention")
def test_the_whole_table_says_what_the_model_does(modules: Path) -> None:
    for row in tuning.TABLE:
        if isinstance(row.evidence, tuning.Predicted):
            check_prediction(row, row.archs[0])


def check_prediction(row: tuning.Row, arch: int) -> None:
    if f"Triton {version('triton')}" != tuning.PREDICTED_WITH:
        pytest.skip(f"the table is predicted from what {tuning.PREDICTED_WITH} compiles")
    assert isinstance(row.evidence, tuning.Predicted)
    assert row.archs == (arch,)
    with triton.CompilerPool(1) as pool:
        compiled = pool.compile(shipped(row.kernel, row.head_dim, arch), arch)
    assert compiled.passed, compiled.verdict
    assert row.evidence.tflops == pytest.approx(compiled.predicted_tflops, rel=0.05)
    assert row.evidence.bound == compiled.bound
