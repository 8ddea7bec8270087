"""The emulated world: the device code itself, run on CPU tensors.

    csrc/*.cu       the same sources, built by g++ over csrc/host, loaded as torch.ops.fusedformer_emulated
    Triton kernels  the same functions under Triton's interpreter
    Gluon kernels   the same functions in fusedformer.simulator, which checks them under a schedule drawn from a seed

`FUSEDFORMER_EMULATE=1`, set before import, turns it on for a whole program; `emulated()` for a block of code.
Triton decides between compiler and interpreter when a kernel is defined, so a program that only uses `emulated()`
must set `TRITON_INTERPRET=1` itself before it imports Triton.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fusedformer import build
from fusedformer.kernels import eager

NAMESPACE = "fusedformer_emulated"
EMULATED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_active = os.environ.get("FUSEDFORMER_EMULATE", "0") not in ("", "0")
_library = torch.library.Library(NAMESPACE, "DEF")
_library_path: Path | None = None  # of the g++ build, once it is loaded

if _active:
    # Triton reads this when it is imported, and a kernel compiled for a GPU could not run on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"


def is_active() -> bool:
    """Whether CPU tensors go through the device code now."""
    return _active


@contextlib.contextmanager
def emulated(active: bool = True) -> Iterator[None]:
    """Send CPU tensors through the device code (or, with `active=False`, through the reference) inside the block."""
    before = _active
    _activate(active)
    try:
        yield
    finally:
        _activate(before)


def _activate(active: bool) -> None:
    global _active
    _active = active
    eager.connect("cpu", _library_path if active else None)


def declare(schema: str) -> None:
    """Give an op of csrc/ its schema in the emulated namespace, for the g++ build to implement."""
    _library.define(schema)


def call(name: str, *args: Any) -> Any:
    """Run op `name` of csrc/ on CPU tensors, building the emulated library first if this machine has not yet."""
    _load()
    return getattr(getattr(torch.ops, NAMESPACE), name)(*args)


@functools.cache
def _load() -> None:
    global _library_path
    _library_path = build.build_emulated()
    torch.ops.load_library(_library_path)
    _activate(_active)
