"""Products with tiles whose columns are no power of 2: 96 are a main part of 64 and a tail of 32, 192 are 128 and 64.

Tensors and tiles of Gluon have powers of 2 of everything. A tile of 96 columns is one of 128, which costs no memory
traffic, for what is past the end of a row TMA fills with 0; but products with these zeros would cost as much as others.
So they leave them out: with TAIL, a tile has its main part in its first half, and TAIL columns from there on. Scores
are summed over both in one sum; what has such columns itself, as out has, is two sums, `main` and `tail`.

Without a tail, TAIL is 0, the main part is all of the tile, and `tail` is 0, of which nothing comes: no function of
Triton 3.6 can return None in a tuple.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from fusedformer.kernels.attention.hopper.ring import ROWS


@gluon.jit
def scores(a, b, TAIL: gl.constexpr, layout: gl.constexpr):
    """a b^T of a (rows, width) and b (n, width), under way."""
    zero = gl.full([a.shape[0], b.shape[0]], 0.0, gl.float32, layout)
    if TAIL == 0:
        return warpgroup_mma(a, b.permute((1, 0)), zero, use_acc=False, is_async=True)
    else:  # without it, the compiler would go on
        HALF: gl.constexpr = b.shape[1] // 2
        main = b.slice(0, HALF, dim=1).permute((1, 0))
        tail = b.slice(HALF, TAIL, dim=1).permute((1, 0))
        s = warpgroup_mma(a.slice(0, HALF, dim=1), main, zero, use_acc=False, is_async=True)
        return warpgroup_mma(a.slice(HALF, TAIL, dim=1), tail, s, is_async=True)


@gluon.jit
def no_sums(WIDTH: gl.constexpr, TAIL: gl.constexpr):
    """`main` and `tail` of 64 rows of a tile of WIDTH columns, 0."""
    MAIN: gl.constexpr = WIDTH if TAIL == 0 else WIDTH // 2
    main = gl.full([ROWS, MAIN], 0.0, gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MAIN, 16]))
    tail = 0
    if TAIL > 0:
        tail = gl.full([ROWS, TAIL], 0.0, gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TAIL, 16]))
    return main, tail


@gluon.jit
def weighted(p, tile, main, tail, TAIL: gl.constexpr):
    """The sums with p (64, n), an operand of `main`, times the tile (n, width): TAIL or no, all of it under way."""
    if TAIL == 0:
        return warpgroup_mma(p, tile, main, is_async=True), tail
    else:
        HALF: gl.constexpr = tile.shape[1] // 2
        layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TAIL, 16])
        same = gl.convert_layout(p, gl.DotOperandLayout(0, layout, 2))
        main = warpgroup_mma(p, tile.slice(0, HALF, dim=1), main, is_async=True)
        tail = warpgroup_mma(same, tile.slice(HALF, TAIL, dim=1), tail, is_async=True)
        return main, tail


@gluon.jit
def await_sums(UNDER_WAY: gl.constexpr, main, tail, TAIL: gl.constexpr):
    """The sums when no more products than UNDER_WAY are."""
    if TAIL == 0:
        return warpgroup_mma_wait(UNDER_WAY, [main]), tail
    else:
        main, tail = warpgroup_mma_wait(UNDER_WAY, [main, tail])
        return main, tail


@gluon.jit
def times(main, tail, factor, TAIL: gl.constexpr):
    """The sums times a number."""
    if TAIL > 0:
        tail = tail * factor
    return main * factor, tail


@gluon.jit
def scaled(main, tail, factors, TAIL: gl.constexpr):
    """The sums times a factor for each row, (64,) of any layout."""
    main = main * _for_rows(factors, main.shape[1])
    if TAIL > 0:
        tail = tail * _for_rows(factors, TAIL)
    return main, tail


@gluon.jit
def divided(main, tail, divisors, TAIL: gl.constexpr):
    """The sums by a divisor for each row, as `scaled`."""
    main = main / _for_rows(divisors, main.shape[1])
    if TAIL > 0:
        tail = tail / _for_rows(divisors, TAIL)
    return main, tail


@gluon.jit
def _for_rows(factors, COLUMNS: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    return gl.expand_dims(gl.convert_layout(factors, gl.SliceLayout(1, layout)), 1)


@gluon.jit
def store_sums(tile, main, tail, TAIL: gl.constexpr):
    """Write the sums to a tile (64, width), in its type; what is past them stays."""
    if TAIL == 0:
        tile.store(main.to(tile.dtype))
    else:
        HALF: gl.constexpr = tile.shape[1] // 2
        tile.slice(0, HALF, dim=1).store(main.to(tile.dtype))
        tile.slice(HALF, TAIL, dim=1).store(tail.to(tile.dtype))


@gluon.jit
def zeros_of(main, tail, TAIL: gl.constexpr):
    """(64,): 0 for a row whose sums are finite, else NaN."""
    zeros = gl.sum(main * 0.0, 1)
    if TAIL > 0:
        layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, main.shape[1], 16])
        zeros += gl.convert_layout(gl.sum(tail * 0.0, 1), gl.SliceLayout(1, layout))
    return zeros
