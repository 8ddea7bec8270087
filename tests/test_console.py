"""What a run tells where no terminal is."""

import pytest

from fusedformer.benchmarks.report.console import Console


@pytest.mark.parametrize(
    ("total", "told"),
    [(57, [6, 12, 18, 23, 29, 35, 40, 46, 52, 57]), (10, list(range(1, 11))), (3, [1, 2, 3]), (1, [1])],
)
def test_many_alike_steps_are_a_line_for_each_tenth(
    total: int, told: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Console() as console:
        for done in range(1, total + 1):
            console.count("compiled", done, total)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == [f"compiled {done} of {total}" for done in told]
