"""The traces of one step at any context length and any depth, from a few that were made.

Every size in a step is a polynomial of the context length S of degree 2 at most: scores of attention are quadratic, all
else is linear. So three traces give the FLOPs, the bytes and the live memory of every op at any S, and a fourth, at
another length, proves it. And blocks are alike: what stands before the middle block, after it and in it is the same in
a model of 3 and of 4 blocks, up to an amount that each further block adds. So two shallow traces give a deep model; its
largest live memory is at an op of the outer blocks, because from one inner block to the next it changes by the same
amount. Where blocks are not alike, the whole model is traced.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusedformer.benchmarks.profile.tracing import Allocation, Trace, TracedOp

SHALLOW = 3  # blocks of the shallower trace: the first, one like all further ones, and the last
MANY_SHAPES = frozenset({"parameters", "gradients", "optimizer state", "KV cache", "inputs"})  # listed as one
COLUMNS = ("flops", "n_bytes", "saved", "live")  # of a sheet, those that grow with the context
Array = NDArray[np.float64]
MakeTrace = Callable[[int, int | None], Trace]  # of a context and a number of blocks


class IrregularError(ValueError):
    """Traces differ in more than sizes: the model does something else at another length or depth."""


@dataclass(frozen=True)
class Sheet:
    """All ops of one step as columns.

    Attributes:
        ops: what each op is; its own figures are those of a shallow trace at one length.
        weights: how many times it happens: as often as there are blocks like the one that it is in.
        flops: of one time.
        n_bytes: likewise.
        saved: bytes that it leaves for the backward.
        live: bytes allocated after it; 0 of an op in a middle block, which is never above its neighbours.
    """

    ops: Sequence[TracedOp]
    weights: Array
    flops: Array
    n_bytes: Array
    saved: Array
    live: Array

    @property
    def peak(self) -> float:
        """The most bytes that are allocated at a time."""
        return float(self.live.max())

    @property
    def peak_index(self) -> int:
        """The op at which that is."""
        return int(self.live.argmax())


@dataclass(frozen=True)
class Held:
    """What is allocated at one time: a kind of tensor, how many of them, and their bytes together."""

    kind: str
    what: str
    count: int
    n_bytes: float


class Family:
    """A step of any context length.

    Args:
        make_trace: traces the step of a context, with so many blocks (None: all).
        n_layers: blocks of the model; None where the depth is not ours to choose.
        lengths: context lengths to trace, one more than the degree of the polynomial.
        check: one more, to check it with; None does not.

    Raises:
        IrregularError: the traces do not fit together.
    """

    def __init__(self, make_trace: MakeTrace, n_layers: int | None, lengths: Sequence[int], check: int | None) -> None:
        self._make_trace, self.n_layers = make_trace, n_layers
        self._lengths = lengths
        try:
            self._sheets = [self.traced(length) for length in self._lengths]
        except IrregularError:  # as of an encoder-decoder, whose blocks share what they attend to
            self.n_layers = None
            self._sheets = [self.traced(length) for length in self._lengths]
        if check is not None:
            self._check(check)

    def _check(self, context: int) -> None:
        found, expected = self.at(context), self.traced(context)
        for name in COLUMNS:
            if not np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-6):
                raise IrregularError(f"{name} of ops are no polynomial of the context at {context}")

    def at(self, context: int) -> Sheet:
        """The sheet of a context that need not have been traced: Lagrange's polynomial through those that were."""
        first, *others = self._sheets
        if any(not _alike(first.ops, sheet.ops) for sheet in others):
            raise IrregularError("other ops at another context length")
        factors = [_lagrange(self._lengths, i, context) for i in range(len(self._lengths))]
        columns = {
            name: sum(factor * getattr(sheet, name) for factor, sheet in zip(factors, self._sheets, strict=True))
            for name in COLUMNS
        }
        return dataclasses.replace(first, **columns)

    def traced(self, context: int) -> Sheet:
        """The sheet of a context by traces of this very length."""
        return self._sheet(self._traces(context))

    def _traces(self, context: int) -> list[Trace]:
        """One of the whole model, or of a deep one those of SHALLOW and SHALLOW + 1 blocks."""
        if self.n_layers is None or self.n_layers <= SHALLOW + 1:
            return [self._make_trace(context, self.n_layers)]
        return [self._make_trace(context, depth) for depth in (SHALLOW, SHALLOW + 1)]

    def _sheet(self, traces: Sequence[Trace]) -> Sheet:
        return sheet_of(traces[0]) if len(traces) == 1 else _deep_sheet(traces[0], traces[1], self.n_layers or 0)

    def held_at_peak(self, context: int) -> list[Held]:
        """What is allocated when most is, the largest first."""
        traces = self._traces(context)
        index = self._sheet(traces).peak_index
        if len(traces) == 1:
            return _listed([(1, traces[0].alive_at(index))])
        shallow, deeper = traces
        further = (self.n_layers or 0) - SHALLOW
        in_shallow = _outer(deeper).index(index)
        return _listed([(1 - further, shallow.alive_at(in_shallow)), (further, deeper.alive_at(index))])

    def largest(self, fits: Callable[[Sheet, int], bool], limit: int) -> int:
        """The longest context up to `limit` whose sheet fits, 0 if none does; what fits, fits at any shorter."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if fits(self.at(middle), middle):
                low = middle
            else:
                high = middle - 1
        return low


def sheet_of(trace: Trace) -> Sheet:
    """The sheet of a whole model's trace."""
    saved = np.zeros(len(trace.ops))
    if trace.forward_end < len(trace.ops):
        for allocation in trace.alive_at(trace.forward_end - 1):
            if allocation.born >= 0:
                saved[allocation.born] += allocation.n_bytes
    return Sheet(
        ops=trace.ops,
        weights=np.ones(len(trace.ops)),
        flops=np.array([op.work.flops for op in trace.ops], dtype=float),
        n_bytes=np.array([op.work.n_bytes for op in trace.ops], dtype=float),
        saved=saved,
        live=np.array(trace.live_bytes(), dtype=float),
    )


def _deep_sheet(shallow: Trace, deeper: Trace, n_layers: int) -> Sheet:
    """The sheet of a model of `n_layers` blocks from those of SHALLOW and SHALLOW + 1."""
    outer = _outer(deeper)
    if not _alike(shallow.ops, [deeper.ops[i] for i in outer], renumbered=True):
        raise IrregularError("other ops at another depth")
    less, more = sheet_of(shallow), sheet_of(deeper)
    further = n_layers - SHALLOW
    columns = {}
    for name in COLUMNS:
        column = getattr(more, name).copy()
        column[outer] = getattr(less, name) + further * (column[outer] - getattr(less, name))
        columns[name] = column
    middle = np.ones(len(deeper.ops), dtype=bool)
    middle[outer] = False
    columns["live"][middle] = 0
    return dataclasses.replace(more, weights=np.where(middle, further, 1.0), **columns)


def _outer(deeper: Trace) -> list[int]:
    """The ops of the deeper trace that the shallower has too: all but those of the last but one block."""
    return [i for i, op in enumerate(deeper.ops) if op.block != SHALLOW - 1]


def _alike(ops: Sequence[TracedOp], others: Sequence[TracedOp], *, renumbered: bool = False) -> bool:
    def key(op: TracedOp, shift: int) -> tuple[object, ...]:
        block = op.block
        return op.name, op.phase, op.component, block - shift if block is not None and block >= SHALLOW else block

    return [key(op, 0) for op in ops] == [key(op, 1 if renumbered else 0) for op in others]


def _lagrange(points: Sequence[int], i: int, x: int) -> float:
    factor = 1.0
    for j, point in enumerate(points):
        if j != i:
            factor *= (x - point) / (points[i] - point)
    return factor


def _listed(weighted: Sequence[tuple[int, Sequence[Allocation]]]) -> list[Held]:
    """Allocations by kind, their numbers and bytes times a weight."""
    counts: dict[tuple[str, str], list[float]] = {}
    for weight, allocations in weighted:
        for allocation in allocations:
            what = "" if allocation.kind in MANY_SHAPES else allocation.what
            total = counts.setdefault((allocation.kind, what), [0, 0])
            total[0] += weight
            total[1] += weight * allocation.n_bytes
    held = [Held(kind, what, round(count), size) for (kind, what), (count, size) in counts.items() if size > 0]
    return sorted(held, key=lambda item: -item.n_bytes)
