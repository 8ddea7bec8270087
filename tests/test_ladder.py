"""The ladder of csrc/ladder.h: which threads share a row, for every length, without running a kernel."""

import ctypes
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from fusedformer import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

SOURCE = """
#include "ladder.h"
using namespace fusedformer;

extern "C" void plan_rows(std::int64_t rows, const std::int64_t* lengths, int count, int element_size, int arch,
                          int processors, int largest_cluster, int sums, int* out) {
  const Machine machine = {arch, processors, largest_cluster};
  for (int i = 0; i < count; ++i) {
    const RowPlan plan = plan_row(rows, lengths[i], element_size, machine, sums ? Ladder(kSummingLadder) : kLadder);
    const int fields[] = {plan.team == TeamKind::kLanes,
                          plan.threads,
                          plan.held,
                          plan.cluster,
                          plan.rows_per_block,
                          static_cast<int>(2 * column_sum_bytes(plan, element_size)),
                          static_cast<int>(lasting_teams(plan, rows, processors))};
    out = std::copy(std::begin(fields), std::end(fields), out);
  }
}

extern "C" void fit_row(int threads, int held, int cluster, std::int64_t vectors, int* out) {
  const RowPlan plan = fit_rung({vectors, 0, TeamKind::kBlocks, threads, held, cluster}, 1, vectors, 1);
  out[0] = plan.cluster;
  out[1] = plan.threads;
}

extern "C" std::int64_t shared_bytes(int arch) { return shared_bytes_of(arch); }

extern "C" int threads_of_block(int lanes, int held) {
  return block_threads(lanes ? TeamKind::kLanes : TeamKind::kBlocks, held);
}

extern "C" int blocks_of_processor(int lanes, int held) {
  return blocks_per_processor(lanes ? TeamKind::kLanes : TeamKind::kBlocks, held);
}
"""
Ints = NDArray[np.int64]

LENGTHS = np.unique(
    np.concatenate(
        [
            np.arange(1, 70_001),
            # Around every power of two, where rungs end.
            *(2**power + np.arange(-9, 10) for power in range(17, 22)),
            np.array([100_003, 128_256, 151_936, 256_000, 1_000_003, 2**31 + 1, 2**40]),
        ]
    )
)
# arch, largest cluster: the last one is a GPU that refuses clusters of 16.
MACHINES = [(80, 1), (90, 16), (100, 16), (120, 16), (90, 8)]
PROCESSORS = 132
SHAPES = [(1, 1), (1, 4), (1, 8), (0, 0), (0, 4), (0, 8)]


@dataclass(frozen=True)
class Plans:
    """The plans for some lengths, an array for each field."""

    vectors: Ints
    lanes: Ints
    threads: Ints
    held: Ints
    cluster: Ints
    rows_per_block: Ints
    sum_bytes: Ints  # of two sums for each column
    teams: Ints  # that stay

    @property
    def capacity(self) -> Ints:
        """Vectors that a team holds."""
        return self.threads * self.held * self.cluster


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "plans.cpp").write_text(SOURCE)
    build.compile_emulated([folder / "plans.cpp"], folder / "plans.so")
    return ctypes.CDLL(str(folder / "plans.so"))


def plan(
    library: ctypes.CDLL,
    size: int,
    arch: int,
    largest_cluster: int,
    rows: int = 1 << 20,
    processors: int = PROCESSORS,
    sums: bool = False,
) -> Plans:
    lengths = np.ascontiguousarray(LENGTHS, dtype=np.int64)
    out = np.empty((len(lengths), 7), dtype=np.int32)
    lengths_pointer = lengths.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    out_pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int))
    library.plan_rows(
        ctypes.c_int64(rows), lengths_pointer, len(lengths), size, arch, processors, largest_cluster, sums, out_pointer
    )
    return Plans(-(-lengths // (16 // size)), *out.T.astype(np.int64))


@pytest.fixture(params=[2, 4], ids=["16 bits", "fp32"])
def size(request: pytest.FixtureRequest) -> int:
    """Of an element, in bytes: float16 and bfloat16 are the same to the ladder."""
    return request.param


@pytest.fixture(params=MACHINES, ids=lambda machine: f"sm_{machine[0]}-cluster-{machine[1]}")
def machine(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


def test_a_team_holds_the_whole_row(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    plans = plan(library, size, *machine)
    held = plans.held > 0
    assert (plans.capacity >= plans.vectors)[held].all()
    # And little more: half of it is used, except by rows so short that the smallest team is too large for them.
    assert (plans.capacity <= 2 * plans.vectors)[held & (plans.vectors > 16)].all()


def test_no_block_of_a_cluster_is_without_a_share(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    plans = plan(library, size, *machine)
    unaligned = plans.vectors - 2  # the fewest whole vectors of a row that begins anywhere
    shared = plans.cluster > 1
    assert (unaligned > (plans.cluster - 1) * plans.threads)[shared].all()
    assert plans.cluster.max() <= machine[1]
    assert shared.any() == (machine[0] >= 90)


@pytest.mark.parametrize("cluster", [2, 8, 16])
def test_no_share_is_empty_on_a_rung_that_is_too_large(library: ctypes.CDLL, cluster: int) -> None:
    """Rows so short come to a cluster if the table is changed, or a rung is forced: fewer blocks share them."""
    for vectors in [*range(1, 600), 1000, 4096]:
        fitted = (ctypes.c_int * 2)()
        library.fit_row(512, 8, cluster, ctypes.c_int64(vectors), fitted)
        blocks, threads = fitted
        assert vectors > (blocks - 1) * threads
        assert vectors <= blocks * threads * 8


def test_rows_are_streamed_only_where_nothing_holds_them(
    library: ctypes.CDLL, size: int, machine: tuple[int, int]
) -> None:
    plans = plan(library, size, *machine)
    longest = {1: 4096, 8: 32768, 16: 65536}[machine[1]]
    assert ((plans.held == 0) == (plans.vectors > longest)).all()


def test_blocks_are_what_kernels_are_compiled_for(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    plans = plan(library, size, *machine)
    shapes = set(zip(plans.lanes.tolist(), plans.held.tolist(), strict=True))
    assert shapes <= set(SHAPES)
    lanes = plans.lanes == 1
    assert set(plans.threads[lanes]) == {8, 16, 32}
    assert (plans.cluster[lanes] == 1).all()
    assert (plans.rows_per_block[~lanes] == 1).all()
    for is_lanes, held in shapes:
        chosen = (plans.lanes == is_lanes) & (plans.held == held)
        threads = (plans.threads * plans.rows_per_block)[chosen]
        assert threads.max() <= library.threads_of_block(is_lanes, held)
        assert (threads % 32 == 0).all()


def test_shared_memory_needs_no_leave(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    """Blocks::shared_bytes: two values of 16 bytes for every warp of the cluster, within the default 48 KiB."""
    plans = plan(library, size, *machine)
    assert (2 * 16 * plans.threads // 32 * plans.cluster).max() <= 49_152


@pytest.mark.parametrize(("lanes", "held"), SHAPES)
def test_registers_suffice_for_two_tensors(library: ctypes.CDLL, lanes: int, held: int) -> None:
    """65,536 registers of a processor are shared out; ptxas keeps to a kernel's share, and must not spill (static)."""
    threads = library.threads_of_block(lanes, held) * library.blocks_of_processor(lanes, held)
    vectors_in_registers, other = 2 * 4 * held, 40
    assert vectors_in_registers + other <= min(255, 65_536 // threads)
    assert threads <= 2048


def test_bytes_in_flight_have_no_cliff(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    """Each processor loads 16 KiB of many rows at a time or more, 10 of tiny ones; none half of its neighbour's."""
    plans = plan(library, size, *machine)
    in_flight = np.zeros(len(LENGTHS))
    for is_lanes, held in SHAPES:
        chosen = (plans.lanes == is_lanes) & (plans.held == held)
        most = library.threads_of_block(is_lanes, held)
        registers = 65_536 // (most * library.blocks_of_processor(is_lanes, held)) // 8 * 8
        blocks = np.minimum(65_536 // (registers * plans.threads * plans.rows_per_block), 32)
        vectors = plans.vectors if held else plans.threads * plans.cluster
        in_flight[chosen] = (16 * blocks * plans.rows_per_block * np.minimum(vectors, plans.vectors) / plans.cluster)[
            chosen
        ]
    assert in_flight[plans.vectors > 4].min() >= 10 * 1024
    assert in_flight[plans.vectors > 16].min() >= 16 * 1024
    in_registers = (plans.held > 0) & (plans.vectors > 4)
    assert (in_flight[1:] >= 0.5 * in_flight[:-1])[in_registers[1:] & in_registers[:-1]].all()


def test_bits_do_not_depend_on_the_batch(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    """Nor on the number of processors: only how many rows a block takes does."""
    many = plan(library, size, *machine)
    for rows, processors in [(1, 132), (7, 16), (1000, 108)]:
        few = plan(library, size, *machine, rows=rows, processors=processors)
        for field in ("lanes", "threads", "held", "cluster"):
            assert (getattr(few, field) == getattr(many, field)).all()
        assert (few.rows_per_block <= many.rows_per_block).all()


def test_few_rows_are_spread_over_processors(library: ctypes.CDLL, machine: tuple[int, int]) -> None:
    plans = plan(library, 2, *machine, rows=132)
    assert (plans.rows_per_block * plans.threads <= 32)[plans.lanes == 1].all()
    plans = plan(library, 2, *machine, rows=132 * 16)
    assert (plans.rows_per_block == 128 // plans.threads)[plans.threads == 8].all()


def test_sums_of_columns_fit_beside_rows(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    """In fp32, two for each column, wherever a cluster of 16 blocks holds the row; all blocks that registers let in."""
    plans = plan(library, size, *machine, sums=True)
    held = plans.held > 0
    assert (plans.capacity >= plans.vectors)[held].all()
    assert (plans.cluster <= machine[1]).all()
    library.shared_bytes.restype = ctypes.c_int64
    own_bytes = 2 * 16 * plans.threads // 32 * plans.cluster
    fits = held & (plans.sum_bytes + own_bytes <= library.shared_bytes(machine[0]))
    longest = {1: 2048, 8: 8192, 16: 32768}[machine[1]] if machine[0] != 120 else 16384
    assert fits[plans.vectors <= longest].all()
    short = plans.vectors <= 1024
    blocks = np.where(plans.lanes == 1, np.where(plans.held == 1, 5, 4), 3)
    most = np.where(plans.lanes == 1, 128, 256)
    together = blocks * most // (plans.threads * plans.rows_per_block)
    if machine[0] in (90, 100):
        assert ((plans.sum_bytes + own_bytes) * together <= 228 * 1024)[short].all()


def test_teams_that_stay(library: ctypes.CDLL, size: int, machine: tuple[int, int]) -> None:
    """No more than rows, no processor without one, and sums that are little beside the rows they are of."""
    for rows in (1, 7, 131, 4096, 1 << 20):
        plans = plan(library, size, *machine, rows=rows, sums=True)
        turns = -(-rows // plans.rows_per_block)
        assert (plans.teams >= 1).all()
        assert (plans.teams <= turns).all()
        needed = np.maximum(-(-turns // 16), -(-PROCESSORS // plans.cluster))
        assert (plans.teams <= needed).all()
        busy = plans.teams * plans.cluster
        assert ((busy > PROCESSORS - plans.cluster) | (plans.teams == turns))[plans.held > 0].all()
