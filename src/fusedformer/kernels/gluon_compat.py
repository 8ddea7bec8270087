"""What differs between the Gluon of one Triton version and another: the names of asynchronous copies and of barriers.

Kernels use the names of Triton 3.9, from here. Where a version lacks one, importing this file fails and `missing` of
kernels/attention/hopper/dispatch.py says why: the Hopper tier is off then, and the plain Triton kernels serve.
"""

from typing import Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import tma


@builtin
def _async_atomic_add(desc: Any, coord: Any, src: Any, _semantic: Any = None) -> None:
    from triton._C.libtriton import ir

    coordinates = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, desc.handle, coordinates, src.handle)


# To 3.8 copies are named after the memories between which they go, and Gluon has no name for the reduction; to 3.6 the
# barrier of the threads of a partition has another name.
async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
async_atomic_add = getattr(tma, "async_atomic_add", None) or _async_atomic_add
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
