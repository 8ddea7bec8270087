"""A contender that is not a plain function: one that may be missing here, or that is compiled anew for each case."""

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

OURS = "ours"
Function = Callable[..., Any]  # gives a Tensor


def is_ours(contender: str) -> bool:
    """Whether a contender of this name is this package's, in whatever form: ours, or ours with more words behind it."""
    return contender.replace(",", " ").split()[:1] == [OURS]


class MissingError(RuntimeError):
    """Why a contender cannot compute this here: a package, a GPU or a feature that it has not."""


@dataclass(frozen=True)
class Implementation:
    """Builds the function of a contender when it is needed.

    Attributes:
        build: gives the function, with nothing compiled yet; raises MissingError.
        package: the distribution whose version tells which one it is.
        forward_only: it has no derivative.
        scope: what is in force while it computes, forward and backward.
        witness: the same around the calls that judge it; raises MissingError where they were not computed its way.
    """

    build: Callable[[], Function]
    package: str = "torch"
    forward_only: bool = False
    scope: Callable[[], AbstractContextManager[None]] = nullcontext
    witness: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """One call of a function built for it."""
        with self.scope():
            return self.build()(*inputs, **options)


def built(function: Function) -> Function:
    """The function itself, built for one case.

    Raises:
        MissingError: it is not to be had here.
    """
    return function.build() if isinstance(function, Implementation) else function


def version_of(name: str, function: Function) -> str:
    """Package and version of a contender by its name: ours, or PyTorch's unless it says otherwise."""
    if isinstance(function, Implementation):
        return package_version(function.package)
    return package_version("fusedformer" if is_ours(name) else "torch")


@cache
def package_version(package: str) -> str:
    """Such as "torch 2.13.0"; empty if it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def need(module: str, package: str) -> None:
    """Check that a package is here, without importing it.

    Raises:
        MissingError: it is not.
    """
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # of a parent package
        found = None
    if found is None:
        raise MissingError(f"{package} is not installed")


def has_backward(function: Function) -> bool:
    """Whether it has a derivative."""
    return not (isinstance(function, Implementation) and function.forward_only)


def scope_of(function: Function) -> Callable[[], AbstractContextManager[None]]:
    """What is in force while it computes."""
    return function.scope if isinstance(function, Implementation) else nullcontext


def witness_of(function: Function) -> Callable[[], AbstractContextManager[None]]:
    """What watches the calls that judge it, of each direction for itself; `nullcontext` where nothing does."""
    return function.witness if isinstance(function, Implementation) else nullcontext


def compiled(function: Function) -> Implementation:
    """`function` by torch.compile, anew for each case: for its shapes alone, and not given up for too many of them."""

    def build() -> Function:
        if not torch.cuda.is_available():
            raise MissingError("takes half a minute a case to compile for a CPU: timed on a GPU only")
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False)

    return Implementation(build)
