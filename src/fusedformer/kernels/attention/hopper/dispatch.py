"""Whether the Hopper tier serves a launch, and if not, why: every other launch is plain Triton's.

    FUSEDFORMER_HOPPER=1        it serves whatever it supports
    FUSEDFORMER_HOPPER=fused    the same, and dQ is added up by atomics in the kernel of dK and dV: two products fewer,
                                but its last bits may differ from one run to the next
    FUSEDFORMER_HOPPER=persistent   the same as 1, and the forward runs on a persistent grid where it can
    FUSEDFORMER_HOPPER=three    the same as 1, and the forward has three consumers where it can
    FUSEDFORMER_HOPPER=0        it serves nothing
    not set                     it serves the rows of tuning.py whose correctness on an H200 is on record in results/

`preferred` does the same for a block of code. In the emulated world the kernels run in the simulator, where asked for.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fusedformer.kernels.attention.hopper import tuning

if TYPE_CHECKING:
    from fusedformer.kernels.attention.launch import Problem

SWITCH = "FUSEDFORMER_HOPPER"
KERNELS = "fusedformer.kernels.attention.hopper.kernels"
ARCH = 90
_CAP = 1024  # the largest softcap: errors of capped scores are 2^-22 of it
_SMALL = 1e-20  # a scale by which slopes can be divided
ROWS = 64  # queries or keys of a consumer: the tiles whose finiteness a repair asks for
LONGEST_PACKED = 2**30  # rows of all sequences, see packing.py
PROGRAM_ROWS = 2 * ROWS  # of packed sequences these are


def check(preference: str) -> str:
    """A value of FUSEDFORMER_HOPPER, empty for none.

    Raises:
        ValueError: it is none.
    """
    if preference not in ("", "0", "1", "fused", *tuning.ON_REQUEST):
        raise ValueError(f"{SWITCH} is {preference!r}, expected 0, 1, fused, {' or '.join(tuning.ON_REQUEST)}")
    return preference


_preference = check(os.environ.get(SWITCH, ""))


def preference() -> str:
    """The value of FUSEDFORMER_HOPPER that is in force."""
    return _preference


@contextlib.contextmanager
def preferred(preference: str) -> Iterator[None]:
    """Inside the block, as if FUSEDFORMER_HOPPER had this value.

    Raises:
        ValueError: it is none of its values.
    """
    global _preference
    before, _preference = _preference, check(preference)
    try:
        yield
    finally:
        _preference = before


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be had with the Triton that is here; None if they can."""
    try:
        importlib.import_module(KERNELS)
    except (ImportError, AttributeError) as error:
        return f"Triton's Gluon lacks what it needs: {error}"
    return None


def status() -> str:
    """What the tier does in this process, in words."""
    if reason := missing():
        return f"off: {reason}"
    if _preference:
        return f"{'off' if _preference == '0' else 'on'}: {SWITCH}={_preference}"
    recorded = sum(row.recorded for row in tuning.TABLE)
    return f"on for the {recorded} of {len(tuning.TABLE)} variants that are recorded as correct on an H200" + (
        f"; {SWITCH}=1 turns all of them on" if recorded < len(tuning.TABLE) else ""
    )


def refusal(kernel: str, problem: "Problem", *tensors: Tensor) -> str | None:
    """Why the Hopper tier does not launch `kernel` of this problem; None where it does.

    `kernel` is "fwd", "dq" or "dkdv", which are plain Triton's then, "fused", or "fwd_fp8".
    `tensors`: those beside q, k and v that the kernel reads or writes by rows of a head.
    """
    row = row_for(kernel, problem)
    return (  # the cheapest first: every launch comes by here
        _unfit_place(problem.arch)
        or _unwanted(kernel, row)
        or _unfit_features(kernel, problem)
        or _unfit_shape(kernel, problem, row)
        or next(filter(None, map(_unfit_layout, (problem.q, problem.k, problem.v, *tensors))), None)
        or missing()
    )


def row_for(kernel: str, problem: "Problem") -> tuning.Row | None:
    """The row by which `kernel` computes a problem, as `tuning.row_of` unless another is asked for; None for none."""
    sizes, features = (problem.q.shape[3], problem.v.shape[3]), _features(problem)
    if kernel == "fwd" and _preference in tuning.ON_REQUEST:
        of_tile = ("grouped",) * (heads_of_tile(problem) > 1) + ("softcap",) * (problem.extras.softcap != 0)
        if (row := tuning.row_on_request(_preference, *sizes, features + of_tile)) is not None:
            return row
    return tuning.row_of(kernel, *sizes, features)


def heads_of_tile(problem: "Problem") -> int:
    """How many heads share a tile of queries in the forward by a row of the table."""
    if problem.extras.is_packed:
        return 1
    return tuning.heads_of_tile(problem.q.shape[2] // problem.k.shape[2], problem.q.shape[1])


def _features(problem: "Problem") -> tuple[str, ...]:
    """Those of a row that the problem asks for."""
    mask = "window" if problem.left is not None else "causal" if problem.right is not None else "whole"
    alibi = ("alibi",) * (problem.extras.slopes is not None)
    return (mask, *alibi, *("packed",) * problem.extras.is_packed)


def _unfit_place(arch: int | None) -> str | None:
    return None if arch in (None, ARCH) else f"it is for sm_{ARCH}, this is sm_{arch}"


def _unwanted(kernel: str, row: tuning.Row | None) -> str | None:
    if _preference == "0":
        return f"{SWITCH}=0"
    if kernel == "fused" and _preference != "fused":
        return f"its result may differ from one run to the next: {SWITCH}=fused turns it on"
    if not _preference and not (row and row.recorded):
        return f"not yet on record as correct on an H200: {SWITCH}=1 turns it on"
    return None


def _unfit_features(kernel: str, problem: "Problem") -> str | None:
    extras = problem.extras
    given = {
        "a mask": extras.mask is not None,
        "a bias": extras.bias is not None,
        "ALiBi, in gradients or float8": kernel != "fwd" and extras.slopes is not None,
        "ALiBi and a softcap together": extras.slopes is not None and extras.softcap != 0,
        f"ALiBi beside a scale under {_SMALL}": extras.slopes is not None and 0 < extras.scale < _SMALL,
        "dropout": extras.seed is not None,
        f"a softcap outside of 1/{_CAP} to {_CAP}": kernel == "fwd" and not _is_fit_cap(extras.softcap),
        "a softcap, in gradients or float8": kernel != "fwd" and extras.softcap != 0,
        "packed sequences whose first query faces the first key": extras.is_packed and not extras.bottom_right,
        "packed sequences with ALiBi or a softcap": extras.is_packed and not extras.is_scaled_only,
        "packed sequences, in float8": kernel == "fwd_fp8" and extras.is_packed,
        "a scale that is not positive": extras.scale <= 0,
        "sinks, in float8": kernel == "fwd_fp8" and extras.sinks is not None,
    }
    unfit = [name for name, is_given in given.items() if is_given]
    return f"it does not take {', '.join(unfit)}" if unfit else None


def _is_fit_cap(softcap: float) -> bool:
    return softcap == 0 or 1 / _CAP <= softcap <= _CAP


def _unfit_shape(kernel: str, problem: "Problem", row: tuning.Row | None) -> str | None:
    q, k, v = problem.q, problem.k, problem.v
    if kernel != "fwd_fp8" and q.dtype not in (torch.float16, torch.bfloat16):
        return f"it is for float16 and bfloat16, not {q.dtype}"
    if not (q.numel() and k.numel()):
        return "there is nothing to compute"
    if problem.extras.is_packed and max(q.shape[1], k.shape[1]) > LONGEST_PACKED:
        return f"it packs {LONGEST_PACKED} rows, not {max(q.shape[1], k.shape[1])}"
    if row is None:
        return f"it has no tile for head dimensions {q.shape[3]} and {v.shape[3]}"
    features = _features(problem)
    if not row.serves(features):
        if row.built_as == "dkdv_wide":
            return "it does not take packed sequences, in the gradients of k and v of wide heads"
        return f"registers do not suffice for {row.kernel} of head dimension {q.shape[3]}, {' '.join(features)}"
    return None


def _unfit_layout(x: Tensor) -> str | None:
    """Rows must be dense, and everything else at multiples of 16 bytes, for TMA to find its way."""
    size = x.element_size()
    strides = [stride for stride, length in zip(x.stride()[:-1], x.shape) if length > 1]
    # A fake tensor has no address, but PyTorch's own memory begins at a multiple of 16.
    start = x.storage_offset() * size if isinstance(x, FakeTensor) else x.data_ptr()
    is_dense = x.stride(-1) == 1 or x.shape[-1] == 1
    if is_dense and start % 16 == 0 and all(stride > 0 and stride * size % 16 == 0 for stride in strides):
        return None
    return f"it reads dense rows at multiples of 16 bytes, not strides {tuple(x.stride())} at byte {start % 16}"
