"""Packed sequences in the Hopper kernels: which of them a program works on, and tiles that end where the sequence does.

TMA checks the bounds of a tensor, not those of a sequence in it: the last tile of a sequence would hold rows of the
next, whose NaN no mask keeps out of a product, and storing it would overwrite them. So launch.py describes packed rows
in two more dimensions, and has none for the batch:

    dimension                    a       b       head    x       column
    size                         2^31    2^31    H       2^30    D             (2^31: almost)
    stride, S that of a row      2^34-S  S       ...     S       1

Row r of a sequence of n rows, the last of which is row e - 1 of the tensor, is a = 2^30, b = e, x = 2^30 - n + r. In
elements, its address is 2^30 (2^34 - S) + e S + (2^30 - n + r) S = 2^64 + (e - n + r) S, and addresses have 64 bits. x
is out of bounds from r = n on: what a tile has there is read as 0, and not written, as at the end of a dense tensor.
Source: Triton, python/triton/tools/ragged_tma.py, which is tested on Hopper and Blackwell.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LARGEST_SEQUENCE = gl.constexpr(1 << 30)


class Sequence(NamedTuple):
    """The rows of a packed sequence: what stands in the batch's place in coordinates."""

    first: Any
    length: Any


class Packed(NamedTuple):
    """The packed sequence that a program works on; all None where nothing is packed."""

    queries: Any  # Sequence
    keys: Any  # Sequence
    total_q: Any  # queries of all sequences
    numbers: Any  # where the numbers of its queries begin in each head: with the queries, or later where there is room


@gluon.jit
def corner(desc, batch, head, start, column: gl.constexpr = 0):
    """Coordinates of the tile from row `start` of a head on; of packed rows, `batch` is the Sequence."""
    if len(desc.block_type.shape) == 5:
        edge = LARGEST_SEQUENCE - batch.length
        return [LARGEST_SEQUENCE, batch.first + batch.length, head, edge + start, column]
    else:  # without it, the compiler would go on
        return [batch, head, start, column]


@gluon.jit
def corner_of_numbers(packed, batch, head, start):
    """`corner` of numbers of queries."""
    if packed.numbers is None:
        return [batch, head, start]
    else:
        return [0, head, packed.numbers + start]


@gluon.jit
def query_corner(desc, packed, plane, heads, start):
    """`corner` of the queries of a program; `plane` counts the heads of all batches, packed those of the one."""
    if packed.queries is None:
        return corner(desc, plane // heads, plane % heads, start)
    else:
        return corner(desc, packed.queries, plane, start)


@gluon.jit
def queries_of(packed, batch):
    """What stands in the batch's place in coordinates of queries: `batch` itself where nothing is packed."""
    return batch if packed.queries is None else packed.queries


@gluon.jit
def keys_of(packed, batch):
    """As `queries_of`, of keys."""
    return batch if packed.keys is None else packed.keys


@gluon.jit
def first_number(packed, plane, seqlen_q):
    """Where a head's numbers of queries begin in a (B, H, Sq) tensor, of packed queries (1, H, total_q)."""
    if packed.queries is None:
        return plane.to(gl.int64) * seqlen_q
    else:
        return plane.to(gl.int64) * packed.total_q + packed.numbers


@gluon.jit
def place(length, BLOCK: gl.constexpr):
    """Where this program works where nothing is packed: plane, and tile of BLOCK rows out of `length`."""
    tiles = gl.cdiv(length, BLOCK)
    return gl.program_id(0) // tiles, gl.program_id(0) % tiles


@gluon.jit
def packed_place(tiles_ptr, starts_q_ptr, starts_k_ptr, heads, total_q, ROOM: gl.constexpr = 0):
    """Where this program works in packed sequences: sequence, negative for nowhere, plane, tile, and its rows.

    ROOM: places between the numbers of one sequence's queries and the next's.
    """
    slots = gl.num_programs(0) // heads
    slot_ptr = tiles_ptr + 2 * (gl.program_id(0) % slots)
    sequence = gl.load(slot_ptr)
    queries = _extent(starts_q_ptr, gl.maximum(sequence, 0))
    keys = _extent(starts_k_ptr, gl.maximum(sequence, 0))
    packed = Packed(queries, keys, total_q, queries.first + sequence * ROOM)
    return sequence, gl.program_id(0) // slots, gl.load(slot_ptr + 1), packed


@gluon.jit
def _extent(starts_ptr, sequence):
    first = gl.load(starts_ptr + sequence)
    return Sequence(first, gl.load(starts_ptr + (sequence + 1)) - first)
