"""What the Hopper kernels share: rings of tiles in shared memory, ranges of keys, and where a program works.

Legend, as in ../tiles.py: B batch, Sq and Sk lengths, H query heads, Hkv key heads (each serves `group` query heads),
D head dimension of q and k, Dv that of v and out. Descriptors are of (B, H, S, D) tensors; what a tile has outside of
the tensor is read as 0 and not written, so ragged lengths and head dimensions that are no powers of two need no code.
Packed sequences have descriptors of their own, see packing.py: the last dimensions are the same, rows and columns.

A program has a producer warp, which loads tiles by TMA, and consumers: warpgroups of 4 warps with 64 rows each. They
hand tiles over by pairs of mbarriers. Tile t of a ring of n stages uses stage t % n for the (t // n)-th time, and an
mbarrier that completes its phases 0, 1, 2, ... lets those pass who wait for the parity of the one it completed last:
so a consumer waits for parity (t // n) % 2 of `full`, and the producer for the opposite one of `empty`, which passes
at once as long as the ring has never been full.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from fusedformer.kernels.attention.hopper.packing import corner
from fusedformer.kernels.gluon_compat import async_load

INF = gl.constexpr(float("inf"))
LN_2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)  # of a consumer: those of one wgmma


class Ring(NamedTuple):
    """Tiles that the producer fills and the consumers empty, in turn."""

    tiles: Any  # (stages, 1, 1, rows, columns), packed a 1 more
    full: Any  # (stages, 1) mbarriers: the tile is there
    empty: Any  # (stages, 1) mbarriers: all its readers are done


class Sight(NamedTuple):
    """Which keys the queries of a program see: query i those from i + lower on, and before i + upper."""

    seqlen_k: Any
    lower: Any  # None: from the first on
    upper: Any  # None: to the last
    first: Any  # tile of keys that the program begins with
    tiles: Any  # that it visits; the forward at least one


@gluon.jit
def make_barriers(STAGES: gl.constexpr, COUNT: gl.constexpr):
    """(STAGES, 1) mbarriers, each of which waits for COUNT arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(barriers.index(i), count=COUNT)
    return barriers


@gluon.jit
def make_tiles(desc, COUNT: gl.constexpr):
    """Shared memory for COUNT tiles as `desc` copies them."""
    shape: gl.constexpr = [COUNT] + desc.block_type.shape  # noqa: RUF005  # Gluon has no stars
    return gl.allocate_shared_memory(desc.dtype, shape, desc.layout)


@gluon.jit
def make_ring(desc, STAGES: gl.constexpr, READERS: gl.constexpr):
    """An empty ring of tiles as `desc` loads them."""
    tiles = make_tiles(desc, STAGES)
    full = make_barriers(STAGES, 1)
    empty = make_barriers(STAGES, READERS)
    return Ring(tiles, full, empty)


@gluon.jit
def claim(ring, t, nbytes: gl.constexpr):
    """Wait until tile t may be filled, announce as many bytes, and give its stage."""
    STAGES: gl.constexpr = ring.tiles.shape[0]
    stage = t % STAGES
    mbarrier.wait(ring.empty.index(stage), (t // STAGES) & 1 ^ 1)
    mbarrier.expect(ring.full.index(stage), nbytes)
    return stage


@gluon.jit
def fill(ring, desc, batch, head, start, t):
    """Load rows from `start` on into tile t."""
    stage = claim(ring, t, desc.block_type.nbytes)
    async_load(desc, corner(desc, batch, head, start), ring.full.index(stage), ring.tiles.index(stage))


@gluon.jit
def await_tile(ring, t):
    """Wait until tile t is there."""
    STAGES: gl.constexpr = ring.tiles.shape[0]
    mbarrier.wait(ring.full.index(t % STAGES), (t // STAGES) & 1)


@gluon.jit
def tile_of(ring, t):
    """Tile t, (rows, columns)."""
    return ring.tiles.index(t % ring.tiles.shape[0]).reshape([ring.tiles.shape[-2], ring.tiles.shape[-1]])


@gluon.jit
def release(ring, t):
    """Tell the producer that this consumer is done with tile t."""
    mbarrier.arrive(ring.empty.index(t % ring.tiles.shape[0]), count=1)


@gluon.jit
def visited_tiles(
    start_m, seqlen_k, lower, upper, BLOCK_N: gl.constexpr, QUERIES: gl.constexpr = ROWS, CONSUMERS: gl.constexpr = 2
):
    """The first tile of keys that QUERIES queries a consumer, from `start_m` on, may see, and how many there are."""
    first = start_m * 0
    last = seqlen_k
    if lower is not None:
        first = gl.maximum(start_m + lower, 0) // BLOCK_N
    if upper is not None:
        last = gl.minimum(last, gl.maximum(start_m + CONSUMERS * QUERIES - 1 + upper, 0))
    return first, gl.maximum(gl.cdiv(last, BLOCK_N) - first, 0)


@gluon.jit
def whole_tiles(start_m, sight, BLOCK_N: gl.constexpr, FIRST, QUERIES: gl.constexpr = ROWS):
    """Of QUERIES queries from `start_m` on: which of the program's tiles, from FIRST on, all of them see wholly."""
    first = start_m * 0
    last = sight.seqlen_k
    if sight.lower is not None:
        first = gl.cdiv(gl.maximum(start_m + QUERIES - 1 + sight.lower, 0), BLOCK_N)
    if sight.upper is not None:
        last = gl.minimum(last, gl.maximum(start_m + sight.upper, 0))
    first = gl.minimum(gl.maximum(first - sight.first, FIRST), sight.tiles)
    return first, gl.minimum(gl.maximum(last // BLOCK_N - sight.first, first), sight.tiles)


@gluon.jit
def visible_keys(i, t, sight, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """(rows, BLOCK_N): which queries `i` see which keys of tile t."""
    start_n = (sight.first + t) * BLOCK_N
    j = gl.expand_dims(start_n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout)), 0)
    end = gl.full([ROWS], 0, gl.int32, gl.SliceLayout(1, layout)) + sight.seqlen_k
    if sight.upper is not None:
        end = gl.minimum(end, i + sight.upper)
    visible = j < gl.expand_dims(end, 1)
    if sight.lower is not None:
        visible = visible & (j >= gl.expand_dims(i + sight.lower, 1))
    return visible


@gluon.jit
def all_finite(zeros):
    """Whether no row has a NaN or is infinite, by the sums of its elements times 0, (64,): those are NaN then."""
    # All rows in every warp: ptxas spills in a sum that goes from warp to warp.
    rows = gl.convert_layout(zeros, gl.BlockedLayout([2], [32], [4], [0]))
    return gl.sum(rows, 0) == 0.0


@gluon.jit
def note_finite(finite_ptr, zeros, start, length, plane, packed, wid: gl.constexpr):
    """Write whether the 64 rows of consumer `wid` are finite to where the repair of ../fwd_kernel.py looks for it.

    `zeros` (64,) are NaN for rows that are not. That kernel counts tiles of a head from its last rows on; packed, each
    consumer has a place for each program.
    """
    if packed.queries is None:
        tiles = gl.cdiv(length, ROWS)
        if start < length:
            gl.store(finite_ptr + (plane * tiles + (tiles - 1 - start // ROWS)), all_finite(zeros))
    else:
        gl.store(finite_ptr + (gl.num_programs(0) * wid + gl.program_id(0)), all_finite(zeros))
