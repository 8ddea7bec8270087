"""Whether the Hopper tier serves a launch, and if not, why: every other launch is plain Triton's.

    FUSEDFORMER_HOPPER=1    it serves whatever it supports
    FUSEDFORMER_HOPPER=0    it serves nothing
    not set                 it serves the rows of tuning.py whose correctness on an H200 is on record in results/

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
ARCH = 90
ROWS = 64  # queries or keys of a consumer: the tiles whose finiteness a repair asks for

def _environment() -> bool | None:
    setting = os.environ.get(SWITCH, "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} is {setting!r}, expected 0 or 1")
    return None if setting == "" else setting == "1"


_preference = _environment()


@contextlib.contextmanager
def preferred(preference: bool | None) -> Iterator[None]:
    """Inside the block, as FUSEDFORMER_HOPPER=1 for True, FUSEDFORMER_HOPPER=0 for False, and not set for None."""
    global _preference
    before, _preference = _preference, preference
    try:
        yield
    finally:
        _preference = before


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be had with the Triton that is here; None if they can."""
    try:
        importlib.import_module("fusedformer.kernels.attention.hopper.kernels")
    except (ImportError, AttributeError) as error:
        return f"Triton's Gluon lacks what it needs: {error}"
    return None


def status() -> str:
    """What the tier does in this process, in words."""
    if reason := missing():
        return f"off: {reason}"
    if _preference is not None:
        return f"{'on' if _preference else 'off'}: {SWITCH}={int(_preference)}"
    recorded = sum(row.recorded for row in tuning.TABLE)
    return f"on for the {recorded} of {len(tuning.TABLE)} variants that are recorded as correct on an H200" + (
        f"; {SWITCH}=1 turns all of them on" if recorded < len(tuning.TABLE) else ""
    )


def refusal(kernel: str, problem: "Problem", *tensors: Tensor) -> str | None:
    """Why plain Triton launches `kernel` ("fwd", "dq" or "dkdv") of this problem; None where the Hopper tier does.

    `tensors`: those beside q, k and v that the kernel reads or writes by rows of a head.
    """
    row = tuning.row_of(kernel, problem.q.shape[3], problem.v.shape[3])
    reasons = (
        _unfit_place(problem.arch),
        _unfit_features(kernel, problem),
        _unfit_shape(problem, row),
        next(filter(None, map(_unfit_layout, (problem.q, problem.k, problem.v, *tensors))), None),
        None if row is None else _unwanted(row),
        missing(),
    )
    return next(filter(None, reasons), None)


def _unfit_place(arch: int | None) -> str | None:
    return None if arch in (None, ARCH) else f"it is for sm_{ARCH}, this is sm_{arch}"


def _unfit_features(kernel: str, problem: "Problem") -> str | None:
    extras = problem.extras
    given = {
        "a mask": extras.mask is not None,
        "a bias": extras.bias is not None,
        "ALiBi": extras.slopes is not None,
        "dropout": extras.seed is not None,
        "a softcap": extras.softcap != 0,
        "packed sequences": extras.is_packed,
        "a scale that is not positive": extras.scale <= 0,
        "a left window in the gradients of k and v": kernel == "dkdv" and problem.left is not None,
    }
    unfit = [name for name, is_given in given.items() if is_given]
    return f"it has no {', '.join(unfit)}" if unfit else None


def _unfit_shape(problem: "Problem", row: tuning.Row | None) -> str | None:
    q, k, v = problem.q, problem.k, problem.v
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it is for float16 and bfloat16, not {q.dtype}"
    if not (q.numel() and k.numel()):
        return "there is nothing to compute"
    if row is None:
        return f"it has no tile for head dimensions {q.shape[3]} and {v.shape[3]}"
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


def _unwanted(row: tuning.Row) -> str | None:
    if _preference is False:
        return f"{SWITCH}=0"
    if _preference is None and not row.recorded:
        return f"not yet on record as correct on an H200: {SWITCH}=1 turns it on"
    return None
