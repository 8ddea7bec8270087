"""The tool that measures tiles, on tiny tensors under Triton's interpreter and with a clock that is told the times."""

import time
from collections.abc import Iterator

import pytest
import torch
from conftest import emulated_world
from typer.testing import CliRunner

from fusedformer.benchmarks import tune
from fusedformer.benchmarks.commands import app
from fusedformer.benchmarks.harness.timing import Run
from fusedformer.benchmarks.report.console import Console
from fusedformer.kernels.attention import launch, tuning
from fusedformer.kernels.attention.tuning import Tile

WIDE, NARROW = Tile(32, 16, 1, 1), Tile(16, 16, 1, 1)
CPU = torch.device("cpu")
SECONDS = 1e4  # by the clock that is told the times


@pytest.fixture
def emulated() -> Iterator[None]:
    """Triton's interpreter."""
    with emulated_world(None):
        yield


def task(kernel: str) -> tune.Task:
    return tune.Task(kernel, torch.float32, head_dim=16, seqlen=40, batch=1, heads=2)


class Clock:
    """Takes the shipped tile for 3 s, and others for 1 s for each row or key of theirs in 16."""

    def time(self, run: Run, repeats: int) -> float:
        tile = run.args[0]  # type: ignore[attr-defined]  # a functools.partial
        return 3.0 if tile is None else tile.block_m / 16


class FastClock(Clock):
    """The same a million times as fast."""

    def time(self, run: Run, repeats: int) -> float:
        return super().time(run, repeats) / 1e6


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_the_fastest_comes_first(kernel: str) -> None:
    best, other = tune.tune(task(kernel), [WIDE, NARROW], CPU, Clock(), SECONDS)
    assert (best.tile, other.tile) == (NARROW, WIDE)
    assert best.speedup is not None
    assert best.speedup.median == pytest.approx(3.0)
    assert not best.refused
    assert "3.000 [3.000, 3.000]" in str(tune.table([best, other]).lines[0])
    row = tune.row(task(kernel), best, 90, "a GPU")
    assert row.startswith(
        f'Row("{kernel}", (90,), 4, 16, Tile(16, 16, 1, 1), <busy>, "a GPU, B 1 S 40 H 2 D 16 causal: 3.0'
    )


# Poisoned: else what new memory held may say, by chance, that the tile of a program that never ran is to be repaired.
@pytest.mark.usefixtures("emulated", "poisoned_memory")
def test_a_wrong_tile_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = launch.run

    def wrong_for_narrow(kernel: object, programs: int, tile: Tile, *rest: object) -> None:
        right(kernel, programs - (tile == NARROW), tile, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(launch, "run", wrong_for_narrow)
    good, bad = tune.tune(task("fwd"), [NARROW, WIDE], CPU, Clock(), SECONDS)
    assert (good.tile, bad.tile, bad.speedup) == (WIDE, NARROW, None)
    assert "wrong" in bad.refused


@pytest.mark.usefixtures("emulated")
def test_a_tile_that_raises_is_refused() -> None:
    good, bad = tune.tune(task("dq"), [Tile(24, 16, 1, 1), WIDE], CPU, Clock(), SECONDS)
    assert good.tile == WIDE
    assert "Error" in bad.refused


def test_the_nearest_to_the_shipped_tile_come_first() -> None:
    of_fwd = tune.Task("fwd", torch.bfloat16, 128, 4096, 4, 16)
    tiles = tune.candidates(of_fwd, 90)
    shipped = tuning.tile("fwd", 90, torch.bfloat16, 128, busy=False)
    assert tiles[0] == shipped == Tile(128, 128, 8, 2)
    assert len(set(tiles)) == len(tiles) == 3 * 3 * 2 * 3
    assert all(tile.block_m * tile.block_n >= 64 * 64 for tile in tiles[:12])
    assert tiles[-1].block_m == tiles[-1].block_n == 32


class TestBudget:
    def test_what_is_not_compiled_in_time_is_refused(self) -> None:
        refused = tune.refusals(task("fwd"), [WIDE, NARROW], 90, jobs=1, deadline=time.monotonic() - 1)
        assert refused == {WIDE: tune.NO_TIME, NARROW: tune.NO_TIME}

    @pytest.mark.usefixtures("emulated")
    def test_what_is_not_checked_in_time_is_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = iter((0.0, 0.5, 1.5, 1.6))  # the start, before each tile, after the last
        monkeypatch.setattr(tune.time, "monotonic", lambda: next(times))
        (first, second) = tune.tune(task("fwd"), [WIDE, NARROW], CPU, FastClock(), seconds=2)
        assert (first.tile, first.refused) == (WIDE, "")
        assert (second.tile, second.refused) == (NARROW, tune.NO_TIME)

    @pytest.mark.usefixtures("emulated")
    def test_too_little_for_any_times_is_a_reason(self) -> None:
        (trial,) = tune.tune(task("fwd"), [WIDE], CPU, Clock(), seconds=5)
        assert (trial.tile, trial.speedup) == (WIDE, None)
        assert "rounds need" in trial.refused

    @pytest.mark.usefixtures("emulated")
    def test_a_run_prints_all_tiles_and_the_row_of_the_best(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(tune, "candidates", lambda task, arch: [WIDE, NARROW, Tile(64, 64, 4, 1)])
        monkeypatch.setattr(tune, "refusals", lambda task, tiles, *rest: {tiles[-1]: "spilled 8 bytes"})
        gpu = tune.Gpu(CPU, 90, "a GPU", Clock())
        with Console() as console:
            tune.run(task("fwd"), gpu, jobs=1, budget_s=SECONDS, console=console)
        printed = capsys.readouterr().out
        assert "spilled 8 bytes" in printed
        assert 'Row("fwd", (90,), 4, 16, Tile(16, 16, 1, 1), <busy>, "a GPU' in printed.replace("\n", " ")


@pytest.mark.static
def test_what_spills_is_not_timed() -> None:
    huge, good = Tile(128, 128, 4, 1), Tile(64, 32, 8, 1)
    refused = tune.refusals(tune.Task("dq", torch.bfloat16, 128, 64, 1, 1), [huge, good], 90, jobs=1)
    assert list(refused) == [huge]
    assert "spilled" in refused[huge]


def test_bad_tasks() -> None:
    with pytest.raises(ValueError, match="no kernel 'forward' to tune: choose from fwd, dq, dkdv"):
        task("forward")
    with pytest.raises(ValueError, match="seqlen is 0, expected 1 or more"):
        tune.Task("fwd", torch.bfloat16, 64, 0, 1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_the_command_needs_a_gpu() -> None:
    result = CliRunner().invoke(app, ["tune", "fwd"])
    assert result.exit_code == 2
    assert "there is no CUDA device here" in result.output
