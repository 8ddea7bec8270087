"""The tiles of a persistent grid: each is computed once, by the kernel's order and by its model, and SMs do as much."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

from simulated_kernels import work_kernel

from fusedformer import simulator
from fusedformer.benchmarks.static_hopper import schedule
from fusedformer.benchmarks.static_hopper.schedule import Launch
from fusedformer.kernels.attention.hopper import tuning

pytestmark = pytest.mark.op("attention")

SMS = 132
LAUNCHES = [
    (Launch(1, 1, 33), 1),
    (Launch(6, 2, 4), 4),
    (Launch(5, 3, 2), 7),
    (Launch(7, 5, 9), 3),
    (Launch(256, 8, 33), SMS),
    (Launch(24, 24, 33), SMS),
    (Launch(70, 5, 33), SMS),
]


@pytest.mark.parametrize(("launch", "programs"), LAUNCHES, ids=str)
def test_each_tile_is_computed_once(launch: Launch, programs: int) -> None:
    shares = [schedule.share(launch, program, programs) for program in range(programs)]
    every = {(plane, tile) for plane in range(launch.planes) for tile in range(launch.tiles)}
    done = [place for share in shares for place in share]
    assert len(done) == len(every)
    assert {*done} == every


@pytest.mark.parametrize(("launch", "programs"), LAUNCHES, ids=str)
def test_the_kernel_has_the_same_order(launch: Launch, programs: int) -> None:
    longest = -(-launch.planes * launch.tiles // programs)
    found = torch.full((programs, longest, 2), -1, dtype=torch.int32)
    simulator.run(work_kernel, (programs,), found, launch.planes, launch.tiles, launch.section, LONGEST=longest)
    for program in range(programs):
        places = [tuple(place) for place in found[program].tolist() if place[0] >= 0]
        assert places == schedule.share(launch, program, programs)


@pytest.mark.parametrize(("planes", "seqlen"), [(256, 1024), (128, 2048), (64, 4096), (32, 8192), (64, 3000)])
def test_causal_work_is_balanced(planes: int, seqlen: int) -> None:
    """The busiest SM does at most as much more than the average as the longest tile."""
    visited = schedule.key_tiles(seqlen, 128, causal=True)
    launch = Launch(planes, len(visited), tuning.section_of(SMS))
    done = [sum(visited[tile] for _, tile in schedule.share(launch, sm, SMS)) for sm in range(SMS)]
    assert max(done) - sum(done) / SMS <= max(visited)
    whole_sections = Launch(4 * tuning.section_of(SMS), len(visited), tuning.section_of(SMS))
    done = [sum(visited[tile] for _, tile in schedule.share(whole_sections, sm, SMS)) for sm in range(SMS)]
    if len(visited) % 8 == 0:
        assert max(done) - min(done) <= 0.02 * max(done) + 2


def test_key_tiles_are_those_of_the_last_rows_first() -> None:
    assert schedule.key_tiles(300, 128, causal=True) == [3, 2, 1]
    assert schedule.key_tiles(300, 64, causal=True) == [5, 4, 2]
    assert schedule.key_tiles(300, 128, causal=False) == [3, 3, 3]


def test_the_model_is_list_scheduling() -> None:
    """Two SMs, three tiles of 1, 2 and 3 steps of 10 us: 3 beside 2 and 1."""
    launch = Launch(1, 3, 1)
    each = schedule.START_US + schedule.END_US
    assert schedule.plain_us(launch, [3, 2, 1], 10.0, 2) == 30 + 2 * each
    assert schedule.persistent_us(launch, [3, 2, 1], 10.0, 2) == 30 + each + schedule.BETWEEN_US


@pytest.mark.parametrize("row", tuning.ON_REQUEST["persistent"], ids=lambda row: f"d{row.head_dim}")
@pytest.mark.parametrize("causal", [False, True])
def test_the_persistent_grid_is_predicted_to_gain_where_programs_are_many(row: tuning.Row, causal: bool) -> None:
    for batch, seqlen in ((16, 1024), (8, 2048), (4, 4096), (2, 8192), (1, 16384)):
        assert schedule.speedup(row, 16 * batch, seqlen, causal) > 1
    assert schedule.speedup(row, 256, 1024, causal) > schedule.speedup(row, 16, 16384, causal)
