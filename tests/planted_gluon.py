"""Bugs planted in the Hopper attention kernels, as data, and the launches that show them: planted_gluon_runs.py.

A bug is an edit of the kernels' text. Edited kernels run in this process, from copies of their files: Gluon reads a
kernel's source from its file.
"""

import importlib
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fusedformer.kernels.attention import hopper
from fusedformer.kernels.attention.hopper import tuning
from fusedformer.kernels.attention.hopper.launch import packed_rows_of, rows_of

FOLDER = Path(hopper.__file__).parent
RING, PACKING, SCORES, QUERIES, PRODUCTS, WORK = "ring", "packing", "scores", "queries", "products", "work"
FWD, FP8, BWD, DQ, WIDE = "fwd_kernel", "fwd_fp8_kernel", "bwd_kernel", "dq_kernel", "dkdv_wide_kernel"
PERSISTENT = "fwd_persistent_kernel"
FILES = (RING, PACKING, SCORES, QUERIES, PRODUCTS, WORK, FWD, PERSISTENT, FP8, BWD, DQ, WIDE)
_copies = itertools.count()


@dataclass(frozen=True)
class Edit:
    """Another text in one of the kernels' files."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class GluonBug:
    """Edits of the kernels, and the case of CASES that shows them."""

    name: str
    case: str
    edits: tuple[Edit, ...]


def bug(name: str, case: str, file: str, old: str, new: str, *more: tuple[str, str]) -> GluonBug:
    """An edit of a file, and further ones of (old, new)."""
    return GluonBug(f"{file}: {name}", case, tuple(Edit(file, *edit) for edit in ((old, new), *more)))


def without(name: str, case: str, file: str, line: str) -> GluonBug:
    """A line that is not there."""
    return bug(name, case, file, line, "")


def swapped(name: str, case: str, file: str, first: str, second: str) -> GluonBug:
    """Two passages, one after the other, in the other order."""
    return bug(name, case, file, first + second, second + first)


@dataclass(frozen=True)
class Case:
    """A launch of a kernel: the smallest shapes that have ragged tails, several tiles, and heads that share keys.

    With `packed`, pairs of lengths of sequences, the second of which holds nothing but NaN, `seqlen_q` and `seqlen_k`
    are the rows of all, and of an unused tail.
    """

    kernel: str
    seqlen_q: int = 150
    seqlen_k: int = 290
    heads: int = 2
    group: int = 2
    head_dim: int = 64
    head_dim_v: int = 64
    left: int | None = None
    right: int | None = 0  # relative to the key that a query faces, counted from the ends of both
    stages: int = 2
    block: int = 64
    has_sinks: bool = False
    softcap: float | None = None
    has_slopes: bool = False
    heads_of_tile: int = 1
    has_flags: bool = False
    is_fused: bool = False
    dtype: torch.dtype = torch.float16
    packed: tuple[tuple[int, int], ...] = ()
    consumers: int = 2
    batch: int = 1
    programs: int = 0  # of a persistent grid
    section: int = 0

    @property
    def side(self) -> int:
        """What its programs divide: queries (0) or keys (1)."""
        return int(self.kernel in (BWD, WIDE))

    @property
    def program_rows(self) -> int:
        """How many of them a program has."""
        return 64 if self.kernel == WIDE else 64 * self.consumers

    @property
    def row(self) -> tuning.Row:
        """What tiles it takes."""
        return tuning.Row("", self.head_dim, self.head_dim_v, self.block, self.stages, tuning.UNKNOWN)

    @property
    def sequences(self) -> list[tuple[slice, slice]]:
        """Rows of q and of k of each sequence."""
        ends_q, ends_k = (list(itertools.accumulate(x)) for x in zip(*self.packed or [(self.seqlen_q, self.seqlen_k)]))
        return [
            (slice(end_q - length_q, end_q), slice(end_k - length_k, end_k))
            for end_q, end_k, (length_q, length_k) in zip(ends_q, ends_k, self.packed or [(ends_q[0], ends_k[0])])
        ]

    def starts(self, side: int) -> Tensor:
        """Where the packed sequences begin, of queries (0) or keys (1)."""
        return torch.tensor([0, *(rows[side].stop for rows in self.sequences)], dtype=torch.int32)

    def describe(self, x: Tensor, rows: int, columns: int) -> Any:
        """The descriptor of a (B, S, H, D) tensor."""
        return (packed_rows_of if self.packed else rows_of)(x, rows, columns)


PACKED: dict[str, Any] = {"packed": ((66, 100), (3, 9), (0, 7), (5, 70)), "seqlen_q": 80, "seqlen_k": 192}
CASES = {
    "fwd": Case(FWD),
    "fwd, full": Case(FWD, right=None),
    "fwd, window": Case(FWD, left=130, right=20, stages=3),
    "fwd, wide values": Case(FWD, head_dim=64, head_dim_v=128, has_sinks=True, seqlen_q=80),
    "fwd, flags": Case(FWD, has_flags=True, seqlen_q=130, seqlen_k=70),
    "fwd, softcap": Case(FWD, left=130, right=20, softcap=2.0, has_sinks=True),
    "fwd, alibi": Case(FWD, has_slopes=True, left=130, right=None),
    "fwd, heads": Case(
        FWD, heads_of_tile=4, heads=6, group=3, seqlen_q=37, left=193, has_sinks=True, has_slopes=True
    ),
    "fwd, tails": Case(FWD, head_dim=96, head_dim_v=96, has_sinks=True),
    "fwd, tails, flags": Case(
        FWD, head_dim=96, head_dim_v=96, has_flags=True, seqlen_q=130, seqlen_k=200, left=90, right=20
    ),
    "fwd, tails, packed": Case(FWD, **PACKED, head_dim=96, head_dim_v=96),
    "fwd, tails, heads": Case(FWD, head_dim=96, head_dim_v=96, heads_of_tile=4, heads=6, group=3, seqlen_q=37),
    "fwd, tail of keys": Case(FWD, head_dim=192, head_dim_v=128),
    "three": Case(FWD, consumers=3, seqlen_q=270),
    "three, full": Case(FWD, consumers=3, seqlen_q=200, right=None),
    "three, window": Case(FWD, consumers=3, seqlen_q=270, left=130, right=20, stages=3, has_sinks=True),
    "three, flags": Case(FWD, consumers=3, has_flags=True, seqlen_q=130, seqlen_k=70),
    "persistent": Case(PERSISTENT, heads=3, group=1, batch=2, programs=4, section=4),
    "persistent, full": Case(PERSISTENT, right=None, seqlen_k=150, heads=4, programs=3, section=2),
    "persistent, window": Case(
        PERSISTENT, left=130, right=20, stages=3, has_sinks=True, batch=2, programs=3, section=3
    ),
    "persistent, flags": Case(PERSISTENT, has_flags=True, seqlen_q=130, seqlen_k=70, batch=2, programs=3, section=4),
    "persistent, unseen": Case(PERSISTENT, seqlen_q=260, seqlen_k=70, programs=2, section=1),
    "persistent, alibi": Case(
        PERSISTENT, has_slopes=True, head_dim_v=128, batch=2, heads=4, group=4, programs=5, section=4
    ),
    "fp8": Case(FP8),
    "fp8, full": Case(FP8, right=None, head_dim_v=128),
    "fp8, window": Case(FP8, left=130, right=20, stages=3),
    "fp8, hidden": Case(FP8, seqlen_q=130, seqlen_k=70),
    "fwd, packed": Case(FWD, **PACKED),
    "fwd, packed, full": Case(FWD, **PACKED, right=None, has_flags=True),
    "dq": Case(DQ),
    "dq, window": Case(DQ, left=130, right=20),
    "dq, flags": Case(DQ, has_flags=True, seqlen_q=130, seqlen_k=70),
    "dq, packed": Case(DQ, **PACKED, has_flags=True),
    "dq, tails": Case(DQ, head_dim=96, head_dim_v=96, has_flags=True, seqlen_q=130, seqlen_k=200),
    "dq, tails, packed": Case(DQ, **PACKED, head_dim=96, head_dim_v=96, left=20, right=10),
    "dq, tail of keys": Case(DQ, head_dim=192, head_dim_v=128, left=130, right=20),
    "dkdv": Case(BWD, seqlen_k=200),
    "dkdv, tails": Case(BWD, seqlen_k=200, head_dim=96, head_dim_v=96, has_flags=True),
    "dkdv, tails, packed": Case(BWD, **PACKED, head_dim=96, head_dim_v=96, left=30, right=None),
    "dkdv, flags": Case(BWD, has_flags=True, seqlen_k=130, seqlen_q=70),
    "dkdv, packed": Case(BWD, **PACKED),
    "dkdv, packed, full": Case(BWD, **PACKED, right=None, has_flags=True),
    "bwd": Case(BWD, seqlen_k=200, is_fused=True),
    "bwd, tails": Case(BWD, seqlen_k=200, head_dim=96, head_dim_v=96, is_fused=True),
    "bwd, full": Case(BWD, seqlen_k=200, right=None, is_fused=True),
    "bwd, packed": Case(BWD, **PACKED, is_fused=True),
    "bwd, packed, window": Case(BWD, **PACKED, left=20, right=10, is_fused=True),
    "dkdv, packed, window": Case(BWD, **PACKED, left=30, right=None, has_flags=True),
    "bwd, window": Case(BWD, seqlen_q=290, seqlen_k=200, left=60, right=31, is_fused=True),
    "dkdv, window": Case(BWD, seqlen_q=290, seqlen_k=200, left=60, right=None),
    "wide": Case(WIDE, seqlen_k=130, head_dim=128),
    "wide, full": Case(WIDE, seqlen_k=130, right=None),
    "wide, window": Case(WIDE, seqlen_q=290, seqlen_k=130, left=60, right=20, head_dim_v=128),
    "wide, unseen": Case(WIDE, seqlen_q=70, seqlen_k=200, left=20, right=20),
    "wide, tail of keys": Case(
        WIDE, seqlen_k=130, seqlen_q=290, head_dim=192, head_dim_v=128, left=60, right=20, has_flags=True
    ),
    "wide, flags": Case(WIDE, has_flags=True, seqlen_k=130, seqlen_q=70),
}  # fmt: skip


def texts(edits: tuple[Edit, ...]) -> dict[str, str]:
    """The text of the kernels' files with the edits made, each of which has one place."""
    result = {name: (FOLDER / f"{name}.py").read_text() for name in FILES}
    for edit in edits:
        count = result[edit.file].count(edit.old)
        assert count == 1, f"{edit.old!r} stands {count} times in {edit.file}.py"
        result[edit.file] = result[edit.file].replace(edit.old, edit.new)
    return result


@contextmanager
def edited(edits: tuple[Edit, ...]) -> Iterator[dict[str, ModuleType]]:
    """The kernels' modules, by their files' names, with the edits made."""
    package = f"planted_kernels_{next(_copies)}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / package).mkdir()
        for name, text in texts(edits).items():
            (Path(folder) / package / f"{name}.py").write_text(
                re.sub(rf"{re.escape(hopper.__name__)}\.(?=({'|'.join(FILES)}) )", f"{package}.", text)
            )
        sys.path.insert(0, folder)
        try:
            yield {name: importlib.import_module(f"{package}.{name}") for name in FILES}
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                del sys.modules[name]
