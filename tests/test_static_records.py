"""Every Triton and Gluon kernel is on record, compiled for each GPU it is for, or named here with the reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusedformer.kernels
from fusedformer.benchmarks import static_baseline
from fusedformer.benchmarks.static import cache

KERNELS = Path(fusedformer.kernels.__path__[0])
# What runs beside an attention, for a small part of its time: none has a steady loop over tiles, or a rate to predict.
NOT_RECORDED = {
    "attention_packing_kernel": "lays out tiles of packed sequences: two integers a tile",
    "attention_hopper_spreading_kernel": "copies two numbers a query, with gaps between packed sequences",
    "attention_fp8_values_kernel": "copies v once, in another order, without a loop",
    "attention_fp8_nan_kernel": "reads a byte a tile and returns, but where v holds NaN",
}
PLANTED = """
import triton
from triton import jit
from triton.experimental import gluon

@triton.jit
def bare_kernel(x_ptr): ...

@triton.jit(do_not_specialize=["n"])
def called_kernel(x_ptr, n): ...

@triton.heuristics({})
@gluon.jit
def nested_kernel(x_ptr): ...

@jit
def imported_kernel(x_ptr): ...

@gluon.jit
def helper(x): ...

def launch_kernel(x): ...
"""


def kernels(source: str) -> Iterator[str]:
    """Names of the functions that Triton or Gluon compiles for a launch: what those call has no name in _kernel."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
            if any(map(is_jit, node.decorator_list)):
                yield node.name


def is_jit(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) == "jit"


def test_a_kernel_is_known_by_its_decorator() -> None:
    assert set(kernels(PLANTED)) == {"bare_kernel", "called_kernel", "nested_kernel", "imported_kernel"}


def test_every_kernel_is_on_record_or_is_named_with_the_reason() -> None:
    """A new kernel needs variants: see `TRITON_OPS` of static/collect.py, or kernels/attention/hopper/variants.py."""
    if not cache.RECORD.is_file():
        pytest.skip("no record: not a checkout")
    shipped = {name for path in KERNELS.rglob("*.py") for name in kernels(path.read_text(encoding="utf-8"))}
    recorded = {row.kernel for row in static_baseline.load(cache.RECORD.parent) if row.op.startswith("attention")}
    assert shipped - recorded == set(NOT_RECORDED)
    assert recorded <= shipped, "the record has kernels that are gone: fusedformer static --record"
