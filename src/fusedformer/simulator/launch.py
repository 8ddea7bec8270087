"""Run a kernel: what `kernel[grid](*args)` is on a GPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from triton.experimental.gluon._runtime import GluonJITFunction

from fusedformer.simulator.errors import Hazard, UnsupportedError
from fusedformer.simulator.global_memory import Written
from fusedformer.simulator.language import Language
from fusedformer.simulator.operations import Operations
from fusedformer.simulator.program import Program


def run(
    kernel: GluonJITFunction,
    grid: Sequence[int],
    *args: Any,
    seed: int | None = None,
    clocks: bool = True,
    num_warps: int = 4,
    num_ctas: int = 1,
    maxnreg: int | None = None,
    **kwargs: Any,
) -> None:
    """Run the programs of a Gluon kernel, one after another, in an order and by schedules that follow from `seed`.

    `args` and `kwargs` are what a launch on a GPU takes: CPU tensors and `TensorDescriptor`s of them, which are written
    to as there, numbers and None. `seed=None` takes FUSEDFORMER_EMULATION_SEED, else 0. `clocks=False` leaves out
    the vector clocks: what is wrong is then noticed only where the schedule brings it out. `maxnreg` is not looked at.

    Raises `Hazard` (a `Deadlock` where nothing can go on), which names the seed, if the kernel breaks a rule of the
    package's docstring, `UnsupportedError` if it uses what the simulator lacks, and what Gluon's compiler would refuse
    as `TypeError` or `ValueError`.
    """
    if num_ctas != 1:
        raise UnsupportedError(f"clusters of {num_ctas} programs")
    if seed is None:
        seed = int(os.environ.get("FUSEDFORMER_EMULATION_SEED", "0"))
    random, written, operations = Random(seed), Written(), Operations()
    language = Language(operations.table())
    body, arguments = language.bind(kernel), language.arguments(kernel, args, kwargs, written)
    pids = list(itertools.product(*map(range, grid)))
    random.shuffle(pids)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a partition is a thread of its own, whose products are small
    try:
        for pid in pids:
            operations.program = Program(pid, grid, random, num_warps, clocks)
            try:
                operations.program.run(lambda: body(**arguments))
            except Hazard as hazard:
                raise type(hazard)(f"{kernel.fn.__name__}, program {pid}, seed {seed}: {hazard}") from hazard
    finally:
        torch.set_num_threads(threads)
