"""The instructions of the loops that go over a tensor, found in the control flow of machine code."""

import pytest

from fusedformer.benchmarks.static import stores

LOOPS = """
	.section	.text.straight,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   FMUL R4, R4, R4 ;
        /*0030*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0040*/                   IADD3 R2, R2, R3, RZ ;
        /*0050*/              @!P0 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
	.section	.text.two_passes,"ax",@progbits
.L_x_1:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   IADD3 R2, R2, R3, RZ ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
.L_x_6:
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/               @P1 LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0050*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/               @P0 BRA `(.L_x_6) ;
.L_x_7:
        /*0070*/                   STG.E.128 desc[UR4][R2.64], RZ ;
        /*0080*/               @P0 BRA `(.L_x_7) ;
        /*0090*/                   EXIT ;
	.section	.text.two_rounds_at_once,"ax",@progbits
.L_x_8:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64+0x10] ;
        /*0030*/                   STG.E.128 desc[UR4][R2.64+0x10], R4 ;
        /*0040*/               @P0 BRA `(.L_x_8) ;
	.section	.text.detour,"ax",@progbits
        /*0000*/                   BSSY B1, `(.L_x_4) ;
.L_x_2:
        /*0010*/               @P0 BRA `(.L_x_3) ;
        /*0020*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0030*/                   BRA `(.L_x_5) ;
.L_x_3:
        /*0040*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_5:
        /*0050*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/                   BSYNC B1 ;
        /*0080*/                   CALL.REL.NOINC `($slow) ;
.L_x_4:
        /*0090*/                   EXIT ;
	.section	.text.no_loop,"ax",@progbits
        /*0000*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0010*/                   EXIT ;
"""


@pytest.mark.parametrize(("outputs", "of_two_rounds"), [(1, 2.5), (2, 5.0)])
def test_every_pass_is_counted_once_round(outputs: int, of_two_rounds: float) -> None:
    """Not the way of unaligned rows, whose accesses are narrow, nor a loop that only stores, nor what is in no loop."""
    costs = {kernel: stores.instructions_per_16_bytes(found, outputs) for kernel, found in stores.passes(LOOPS).items()}
    expected = {"straight": 5, "two_passes": 7, "two_rounds_at_once": of_two_rounds, "detour": 4, "no_loop": 0}
    assert costs == expected
