"""What the Hopper kernels of dK and dV share: how a program passes over the queries that see its keys.

Queries come in tiles of BLOCK_M, those of one head after those of another. `shared` has rings of `q` and `dout`, and
with their tiles `shift` and `delta`, a number for each query.

Key row r of a consumer and query c of a tile are c - r + ahead keys apart, counted from the last key that the query
sees: it sees those 0 and more away, and, in a window, up to `span`. From one tile to the next `ahead` grows by BLOCK_M.
Where every query sees every key, `ahead` is the number of keys there are from row 0 on.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fusedformer.kernels.attention.hopper.packing import corner, corner_of_numbers, queries_of
from fusedformer.kernels.attention.hopper.ring import ROWS, claim
from fusedformer.kernels.gluon_compat import async_load


class Passage(NamedTuple):
    """The queries that a program visits, and which of its keys they see."""

    group: Any  # heads
    first: Any  # tile of queries
    last: Any  # the one after the last
    ahead: Any  # at the first tile, of the program's first key
    span: Any  # or None


@gluon.jit
def visited_queries(
    start_n, seqlen_q, seqlen_k, right, span, KEYS: gl.constexpr, BLOCK_M: gl.constexpr, LEAST: gl.constexpr
):
    """`first`, `last` and `ahead` of a passage over what sees any of KEYS keys from `start_n` on; LEAST tiles or more.

    Not the passage itself: Triton 3.6 returns no None, as which `span` may come.
    """
    last = gl.cdiv(seqlen_q, BLOCK_M)
    first = start_n * 0
    ahead = seqlen_k - start_n
    if right is not None:  # the queries before this tile see none of the program's keys
        first = gl.minimum(gl.maximum(start_n - right, 0) // BLOCK_M, last - LEAST)
        ahead = first * BLOCK_M + right - start_n
    if span is not None:  # and those from this one on neither
        last = gl.minimum(last, gl.cdiv(gl.maximum(start_n + KEYS + span - right, 0), BLOCK_M))
        last = gl.maximum(last, first + LEAST)
    return first, last, ahead


@gluon.jit
def next_ahead(ahead, start, tiles, BLOCK_M: gl.constexpr):
    """That of the next tile, or of the next head's first, where it is `start` again."""
    ahead += BLOCK_M
    if ahead == start + tiles * BLOCK_M:
        ahead = start
    return ahead


@gluon.jit
def weights(s, shared, t, scale_log2, ahead, span, CAUSAL: gl.constexpr, layout: gl.constexpr):
    """p^T of tile t. Not CAUSAL: every query sees every key."""
    BLOCK_M: gl.constexpr = shared.q.tiles.shape[-2]
    columns: gl.constexpr = gl.SliceLayout(0, layout)
    shift = shared.shift.index(t % shared.shift.shape[0]).reshape([BLOCK_M]).load(columns)
    p = gl.exp2(s * scale_log2 - gl.expand_dims(shift, 0))
    is_masked = ahead < (ROWS - 1 if CAUSAL else ROWS)
    if span is not None:
        is_masked = is_masked | (ahead + (BLOCK_M - 1) > span)
    if is_masked:  # a branch in one loop: two loops, the second without masks, spill
        # Sums of two parts, for the compiler: of one number that the thread has, and of constants.
        row = gl.expand_dims(gl.arange(0, ROWS, gl.SliceLayout(1, layout)), 1)
        if CAUSAL:
            query = gl.expand_dims(gl.arange(0, BLOCK_M, columns), 0)
            distance = ((query & 6) - (row & -9) + ahead) + ((query & -7) - (row & 8))
            visible = distance >= 0
            if span is not None:
                visible = visible & (distance <= span)
        else:
            visible = (row & -9) - ahead < -(row & 8)
        p = gl.where(visible, p, 0.0)
    return p


@gluon.jit
def load_queries(shared, q_desc, dout_desc, shift_desc, delta_desc, passage, packed, batch, kv_head):
    """Load what the consumers read of the queries."""
    BLOCK_M: gl.constexpr = shared.q.tiles.shape[-2]
    queries = queries_of(packed, batch)
    t = passage.first * 0
    for member in range(passage.group):
        head = kv_head * passage.group + member
        for tile in range(passage.first, passage.last):
            start_m = tile * BLOCK_M
            stage = claim(shared.q, t, q_desc.block_type.nbytes + shift_desc.block_type.nbytes)
            full = shared.q.full.index(stage)
            async_load(q_desc, corner(q_desc, queries, head, start_m), full, shared.q.tiles.index(stage))
            async_load(shift_desc, corner_of_numbers(packed, batch, head, start_m), full, shared.shift.index(stage))
            stage = claim(shared.dout, t, dout_desc.block_type.nbytes + delta_desc.block_type.nbytes)
            full = shared.dout.full.index(stage)
            async_load(dout_desc, corner(dout_desc, queries, head, start_m), full, shared.dout.tiles.index(stage))
            async_load(delta_desc, corner_of_numbers(packed, batch, head, start_m), full, shared.delta.index(stage))
            t += 1
