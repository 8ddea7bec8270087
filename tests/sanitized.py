"""`python sanitized.py LIBRARY OP`: an op, forward and backward, by the emulator's library of that path."""

import sys
from pathlib import Path

import guard_pages  # asks for the emulated world, so it comes before PyTorch
import torch

from fusedformer import build

if __name__ == "__main__":
    library, op = sys.argv[1:]
    setattr(build, "build_emulated", lambda: Path(library))  # noqa: B010  # mypy does not let a function be assigned
    for function, inputs in guard_pages.calls_in_rows(op):
        print(op, *(f"{x.dtype} {tuple(x.shape)}" for x in inputs), flush=True)
        torch.autograd.grad(function(*inputs).sum(), inputs)
