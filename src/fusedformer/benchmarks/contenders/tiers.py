"""Our attention held to one of its tiers: Triton's kernels, those for Hopper, or those for Hopper with dQ by atomics.

"ours" is what a user gets. A tier that does not serve a call is missing, with the reason that the dispatch to it gives;
one that would run the same kernels as "ours" is not timed twice.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import OURS, Function, Implementation, MissingError
from fusedformer.kernels import emulation
from fusedformer.kernels.attention.hopper import dispatch

if TYPE_CHECKING:
    from fusedformer.kernels.attention.launch import Problem

TRITON, HOPPER, FUSED = f"{OURS}, Triton", f"{OURS}, Hopper", f"{OURS}, Hopper fused"
PREFERENCES = {TRITON: "0", HOPPER: "1", FUSED: "fused"}  # values of FUSEDFORMER_HOPPER
FUSED_KERNEL = "fused"  # of dK, dV and dQ, as dispatch calls it

Asked = dict[str, tuple[str | None, str | None]]  # by kernel, why the tier does not serve it: held to it, and unasked


def tiers(function: Function) -> Mapping[str, Function]:
    """`function`, which calls our attention, by each of its tiers."""
    return {
        name: Implementation(
            partial(_build, function, name),
            "fusedformer",
            scope=partial(dispatch.preferred, preference),
            witness=partial(_witness, name),
        )
        for name, preference in PREFERENCES.items()
    }


def _build(function: Function, name: str) -> Function:
    """
    Raises:
        MissingError: no kernel of ours runs here, or FUSEDFORMER_HOPPER=0 forbids this one.
    """
    if not torch.cuda.is_available() and not emulation.is_active():
        raise MissingError("needs a CUDA device")
    if dispatch.preference() == "0" and name != TRITON:
        raise MissingError(f"{dispatch.SWITCH}=0")
    return function


@contextlib.contextmanager
def _witness(name: str) -> Iterator[None]:
    """Hold a call to a tier, and find out whether all of it was computed there.

    Raises:
        MissingError: it was not, or it was as "ours" is.
    """
    from fusedformer.kernels import replay  # imports Triton, which is not everywhere

    asked: Asked = {}
    replay.forget()  # what is replayed asks nobody
    with _noting(asked), dispatch.preferred(PREFERENCES[name]):
        yield
    if reason := _why_not(name, asked):
        raise MissingError(reason)


@contextlib.contextmanager
def _noting(asked: Asked) -> Iterator[None]:
    """Note what the dispatch says of every kernel that is launched in the block, and would say outside of it."""
    ask, unasked = dispatch.refusal, dispatch.preference()

    def noting(kernel: str, problem: "Problem", *tensors: Tensor) -> str | None:
        reason = ask(kernel, problem, *tensors)
        with dispatch.preferred(unasked):
            asked[kernel] = reason, ask(kernel, problem, *tensors)
        return reason

    dispatch.refusal = noting
    try:
        yield
    finally:
        dispatch.refusal = ask


def _why_not(name: str, asked: Asked) -> str:
    """Why a tier has no time of its own; empty if it has."""
    if name == FUSED and FUSED_KERNEL not in asked:
        return f"as {HOPPER}: without dQ, or without dK and dV, there is nothing to fuse"
    needed = {TRITON: set(), HOPPER: set(asked) - {FUSED_KERNEL}, FUSED: set(asked)}[name]
    refused = [f"{kernel}: {held}" for kernel, (held, _) in asked.items() if kernel in needed and held]
    if refused:
        return "; ".join(refused)
    if all((held is None) == (unasked is None) for held, unasked in asked.values()):
        unasked = {kernel: reason or "it serves unasked" for kernel, (_, reason) in asked.items()}
        return f"as {OURS}: " + "; ".join(dict.fromkeys(unasked[kernel] for kernel in asked if kernel != FUSED_KERNEL))
    return ""
