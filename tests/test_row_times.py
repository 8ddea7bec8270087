"""Predicted times of the kernels that go over rows: bytes or instructions, whichever take longer, and a launch."""

import pytest

from fusedformer.benchmarks import row_times
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.report.tables import row_times_table
from fusedformer.benchmarks.row_times import LAUNCH_SECONDS, LENGTHS, ROWS
from fusedformer.benchmarks.static import cache
from fusedformer.benchmarks.static.row import StaticRow


def softmax(instructions: float | None, arch: int = 90, dtype: str = "__nv_bfloat16") -> StaticRow:
    variant = f"{dtype}, RowShape<Blocks, 0>"
    return StaticRow(
        op="softmax", kernel="softmax_fwd_kernel", variant=variant, arch=arch, instructions_per_element=instructions
    )


def test_what_moves_binds_while_instructions_are_few() -> None:
    """2 bytes read and 2 written of each element, at nine tenths of 4.8 TB/s."""
    times = list(row_times.predict([softmax(1.0)]))
    assert [time.length for time in times] == list(LENGTHS)
    for time in times:
        assert time.seconds == pytest.approx(ROWS * time.length * 4 / (0.9 * 4.8e12) + LAUNCH_SECONDS)
        assert time.issue_share < 1
    assert times[-1].bandwidth_share == pytest.approx(0.9, rel=0.01)


def test_instructions_bind_where_they_are_many() -> None:
    """132 SMs issue 4 instructions of 32 threads a cycle, at 1.83 GHz; of several variants the slowest counts."""
    *_, time = row_times.predict([softmax(10.0), softmax(100.0)])
    expected = ROWS * LENGTHS[-1] * 100 / (132 * 4 * 32 * 1.83e9)
    assert time.seconds == pytest.approx(expected + LAUNCH_SECONDS)
    assert time.issue_share > 1


def test_other_machines_types_and_kernels_without_a_count_are_left_out() -> None:
    rows = [softmax(1.0, arch=80), softmax(1.0, dtype="float"), softmax(None)]
    assert list(row_times.predict(rows)) == []


def test_every_op_of_rows_is_in_the_table() -> None:
    if not cache.RECORD.exists():
        pytest.skip("no record: not a checkout")
    rows = [StaticRow.from_dict(row) for rows in cache._record().values() for row in rows]
    lines = row_times_table(rows).lines
    assert {op for op, *_ in lines} == set(OPS) - {"attention"}
    assert all(len(line) == 3 + len(LENGTHS) for line in lines)
