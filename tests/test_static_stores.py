"""The instructions of the loop that stores, found in the control flow of machine code."""

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
	.section	.text.two_stores,"ax",@progbits
.L_x_1:
        /*0000*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0010*/                   FMUL R4, R4, R4 ;
        /*0020*/                   STG.E.128 desc[UR4][R2.64+0x10], R4 ;
        /*0030*/                   IADD3 R2, R2, R3, RZ ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
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


def test_the_loop_that_stores_is_counted_once_round() -> None:
    """Not the way of unaligned rows, whose accesses are narrow, and not what stands before the loop or after it."""
    costs = stores.instructions_per_16_bytes(LOOPS)
    assert costs == {"straight": 5.0, "two_stores": 2.5, "detour": 4.0}
