"""The tile table serves every GPU and size, and the shipped variants are those that it makes."""

import pytest
import torch

from fusedformer.kernels.attention import tuning
from fusedformer.kernels.attention import variants as attention_variants

pytestmark = pytest.mark.op("attention")

ARCHS = [80, 86, 87, 89, 90, 100, 103, 120, 121]
KERNELS = ["fwd", "rows", "dq", "dkdv", "dbias"]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_gpu_dtype_and_head_dimension_has_a_tile(arch: int) -> None:
    for kernel in KERNELS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for head_dim in range(1, 513):
                exact = tuning.is_elementwise(kernel, arch, dtype, head_dim)
                for busy in (False, True):
                    tile = tuning.tile(kernel, arch, dtype, head_dim, busy, exact)
                    if exact:
                        continue
                    # A tile of a product has 16 rows and columns at least, and powers of two.
                    assert {tile.block_m, tile.block_n} <= {16, 32, 64, 128}


def test_a_gpu_without_rows_gets_those_of_a_smaller_chip() -> None:
    def tile(arch: int) -> tuning.Tile:
        return tuning.tile("fwd", arch, torch.bfloat16, 128, False)

    assert tile(89) == tile(120)
    assert tile(103) == tile(100)
    assert tile(90) != tile(120)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_variants_cover_the_table(arch: int) -> None:
    variants = attention_variants.variants(arch)
    assert len({(variant.kernel, variant.name) for variant in variants}) == len(variants)
    shipped = {
        tuning.Tile(
            variant.constexprs["BLOCK_M"],
            variant.constexprs.get("BLOCK_N", 16),  # the rows kernel has none
            variant.num_warps,
            variant.num_stages,
        )
        for variant in variants
        if "decode" not in variant.module
    }
    # What is plain has no bias, and so no gradient of it.
    rows = [row for row in tuning.TABLE if arch in row.archs and row.kernel != "dbias"]
    assert {tile for row in rows for tile in (row.tile, row.busy)} <= shipped
