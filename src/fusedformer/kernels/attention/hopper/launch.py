"""Launchers of the Hopper attention kernels: on an sm_90 GPU, or on CPU tensors in the simulator."""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fusedformer.kernels import replay
from fusedformer.kernels.attention.hopper import packing, tuning
from fusedformer.kernels.attention.hopper.dispatch import PROGRAM_ROWS, ROWS, heads_of_tile, row_for
from fusedformer.kernels.attention.hopper.kernels import KERNELS
from fusedformer.kernels.attention.hopper.spreading_kernel import spread

if TYPE_CHECKING:
    from fusedformer.kernels.attention.launch import Problem

_ANY_STRIDE = 16  # of a dimension of size 1
_LARGEST_SIZE = 2**31 - 2**16  # of a dimension
_SIMULATED_SMS = 3
_GLUON = {
    torch.float8_e4m3fn: gl.float8e4nv,
    torch.float16: gl.float16,
    torch.bfloat16: gl.bfloat16,
    torch.float32: gl.float32,
}


def launch(name: str, problem: "Problem", finite: Tensor | None, *tensors: Tensor | None) -> None:
    """Launch kernel "fwd", "fwd_fp8", "dq", "dkdv" or "fused" of a problem that `dispatch.refusal` has nothing against.

    Args:
        name: the kernel's.
        problem: q, k, v and settings.
        finite: int8, a place for every 64 queries (in "dkdv" and "fused" keys) of every head, of packed sequences for
            every PROGRAM_ROWS of them; None where nothing is hidden.
        tensors: the same as plain Triton's kernel takes in its place, see attention/launch.py; "fused", those of
            "dkdv" and (B, Sq, H, D) float32 zeros, to which dQ is added before its scale; "fwd_fp8", see
            ../fp8/launch.py.
    """
    row = row_for(name, problem)
    assert row is not None  # dispatch.refusal has found one
    heads = heads_of_tile(problem) if name == "fwd" else 1
    packed, programs = _divide(problem, row, heads)
    flags = finite
    if heads > 1 and finite is not None:  # the repair finds out itself: these are few rows
        finite.zero_()
        flags = None
    if packed and finite is not None:  # a repair of packed sequences looks at all rows of a program as one
        flags = finite.new_empty((2, programs))
    args = _ARGUMENTS[name](problem, row, flags, *tensors)
    constants: dict[str, Any] = {
        "STAGES": row.stages,
        "CONSUMER_REGISTERS": row.consumer_registers,
        "PRODUCER_REGISTERS": row.producer_registers,
    }
    kernel = KERNELS[row.built_as]
    constants |= {tail: size for tail, size in zip(("TAIL", "TAIL_V"), row.tails) if tail in kernel.arg_names}
    if name in ("fwd", "fwd_fp8"):
        constants["PING_PONG"] = row.ping_pong
    if row.built_as == "fwd":
        constants |= {"CONSUMERS": row.consumers, "HEADS": heads}
    if row.persistent:
        sms = _sms(problem)
        args += (problem.q.shape[0] * problem.q.shape[2], tuning.section_of(sms))
        programs = min(programs, sms)
    _start(row, programs, problem, args, constants | packed)
    if packed and flags is not None:
        torch.amin(flags, 0, out=finite)


def _divide(problem: "Problem", row: tuning.Row, heads: int) -> tuple[dict[str, Tensor | None], int]:
    """What a kernel is told of packed sequences, if anything, and how many programs it has; `heads` share a tile."""
    of_keys = row.kernel in ("dkdv", "fused")
    starts, side = (problem.extras.starts_k, problem.k) if of_keys else (problem.extras.starts_q, problem.q)
    if starts is None:
        planes = side.shape[0] * (side.shape[2] if heads == 1 else problem.k.shape[2])
        return {}, planes * triton.cdiv(side.shape[1] * heads, row.program_rows)
    slots = problem.slots(starts, side.shape[1], PROGRAM_ROWS)
    packed = {"starts_q_ptr": problem.extras.starts_q, "starts_k_ptr": problem.extras.starts_k, "tiles_ptr": slots}
    return packed, len(slots) * side.shape[2]


def _sms(problem: "Problem") -> int:
    """Of the GPU; in the simulator few, so that each has several tiles."""
    if problem.arch is None:
        return _SIMULATED_SMS
    return torch.cuda.get_device_properties(problem.q.device).multi_processor_count


def _start(row: tuning.Row, programs: int, problem: "Problem", args: tuple[Any, ...], by_name: dict[str, Any]) -> None:
    kernel = KERNELS[row.built_as]
    if problem.arch is None:
        replay.launch_by(functools.partial(_simulate, kernel, programs), args, by_name)
        return
    with torch.cuda.device_of(problem.q):
        replay.launch(kernel, programs, args, **by_name, num_warps=4, maxnreg=row.registers)


def _simulate(kernel: Any, programs: int, *args: Any, **by_name: Any) -> None:
    """By the schedule of the seed that is set now: a replay too."""
    from fusedformer import simulator

    seed = int(os.environ.get("FUSEDFORMER_EMULATION_SEED", "0"))
    simulator.run(kernel, (programs,), *args, seed=seed, **by_name)


def _fwd(
    problem: "Problem", row: tuning.Row, finite: Tensor | None, sinks: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Any, ...]:
    heads, describe = heads_of_tile(problem), describer(problem)
    width, width_v = row.tiles

    def describe_queries(x: Tensor, columns: int) -> TensorDescriptor:
        return describe(x, ROWS, columns) if heads == 1 else grouped_rows_of(x, problem.k.shape[2], heads, columns)

    return (
        describe_queries(problem.q, width),
        describe(problem.k, row.block, width),
        describe(problem.v, row.block, width_v),
        sinks,
        describe_queries(out, width_v),
        lse,
        finite,
        *_sizes(problem),
        problem.scoring.softcap_log2,
        problem.scoring.slopes_ptr,
        *(problem.scoring.slopes_strides or (None, None)),
    )


def _fwd_fp8(
    problem: "Problem", row: tuning.Row, finite: None, values: Tensor,
    q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, out: Tensor, lse: Tensor,
) -> tuple[Any, ...]:  # fmt: skip
    return (
        rows_of(problem.q, ROWS, row.head_dim),
        rows_of(problem.k, row.block, row.head_dim),
        rows_of(values.transpose(1, 2), row.head_dim_v, row.block),
        q_descale,
        k_descale,
        v_descale,
        rows_of(out, ROWS, row.head_dim_v),
        lse,
        *_sizes(problem),
    )


def _dq(
    problem: "Problem", row: tuning.Row, finite: Tensor | None,
    dout: Tensor, delta: Tensor, shift: Tensor, dq: Tensor, slope_rows: None,
) -> tuple[Any, ...]:  # fmt: skip
    describe = describer(problem)
    width, width_v = row.tiles
    return (
        describe(problem.q, ROWS, width),
        describe(problem.k, row.block, width),
        describe(problem.v, row.block, width_v),
        describe(dout, ROWS, width_v),
        delta,
        shift,
        describe(dq, ROWS, width),
        finite,
        *_sizes(problem),
    )


def _dkdv(
    problem: "Problem", row: tuning.Row, finite: Tensor | None,
    dout: Tensor, delta: Tensor, shift: Tensor, dk: Tensor, dv: Tensor, sums: Tensor | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    heads, group, seqlen_q, seqlen_k, diagonal, left, right, scale_log2 = _sizes(problem)
    describe = describer(problem)
    width, width_v = row.tiles
    last, span = span_of(seqlen_k, diagonal, left, right)
    if problem.extras.starts_q is not None:  # each sequence has a diagonal of its own, to which its kernel adds `last`
        last, span = span_of(seqlen_q, 0, left, right)
        slots = problem.slots(problem.extras.starts_q, problem.q.shape[1], row.block)
        delta, shift = spread(delta, shift, problem.extras.starts_q, slots, row.block)
    tiles_of_dq = [None if sums is None else describe(sums, row.block, width // 2)]
    return (
        describe(problem.q, row.block, width),
        describe(problem.k, row.program_rows, width),
        describe(problem.v, ROWS, width_v),
        describe(dout, row.block, width_v),
        numbers_of(delta, row.block),
        numbers_of(shift, row.block),
        *(tiles_of_dq if row.built_as != "dkdv_wide" else ()),
        describe(dk, ROWS, width),
        describe(dv, ROWS, width_v),
        finite,
        heads // group,
        group,
        seqlen_q,
        seqlen_k,
        last,
        span,
        scale_log2,
    )


_ARGUMENTS: dict[str, Any] = {"fwd": _fwd, "fwd_fp8": _fwd_fp8, "dq": _dq, "dkdv": _dkdv, "fused": _dkdv}


def span_of(far: int, diagonal: int, left: int | None, right: int | None) -> tuple[int | None, int | None]:
    """How far right of its own index a query sees keys, and how far left of that; None for all.

    Args:
        far: from where on right of its index no query has a key.
        diagonal: the key that query 0 faces.
        left: of the window, as `right` counted from the key that a query faces.
        right: None, as `left`, for all.
    """
    if right is None and left is None:
        return None, None
    last = far if right is None else diagonal + right
    return last, None if left is None else last - diagonal + left


def finish_fused(problem: "Problem", finite: Tensor | None, sums: Tensor, dq: Tensor | None) -> None:
    """dQ from what "fused" has added up; whether it is finite, the repair finds out."""
    assert dq is not None  # it is wanted
    dq.copy_(sums.mul_(problem.extras.scale))
    if finite is not None:
        finite.zero_()


def _sizes(problem: "Problem") -> tuple[Any, ...]:
    """heads, group, seqlen_q, seqlen_k, diagonal, left, right, scale_log2."""
    heads, group, seqlen_q, seqlen_k, left, right = problem.sizes
    assert seqlen_q is not None
    assert seqlen_k is not None
    diagonal = seqlen_k - seqlen_q if problem.extras.bottom_right else 0
    return heads, group, seqlen_q, seqlen_k, diagonal, left, right, problem.scoring.scale_log2


def grouped_rows_of(x: Tensor, kv_heads: int, heads: int, columns: int) -> TensorDescriptor:
    """Descriptor of tiles of 64 rows of the heads of a group of a (B, S, H, D) tensor.

    Row r of a tile is that of query r // heads and head r % heads.
    """
    return _tiles(x.unflatten(2, (kv_heads, -1)).transpose(1, 2), [1, 1, ROWS // heads, heads, columns])


def describer(problem: "Problem") -> Callable[[Tensor, int, int], TensorDescriptor]:
    """What describes the tensors of a problem."""
    return packed_rows_of if problem.extras.is_packed else rows_of


def rows_of(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Descriptor of tiles of `rows` rows of a head of a (B, S, H, D) tensor."""
    return _tiles(x.transpose(1, 2), [1, 1, rows, columns])


def packed_rows_of(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Descriptor of tiles of `rows` rows of a head of a (1, total, H, D) tensor, which end with their sequence.

    packing.py says how.
    """
    stride = x.stride(1) if x.shape[1] > 1 else _ANY_STRIDE
    of_heads = x.stride(2) if x.shape[2] > 1 else _ANY_STRIDE
    block = [1, 1, 1, rows, columns]
    layout = gl.NVMMASharedLayout.get_default_for(block, _GLUON[x.dtype])
    largest = packing.LARGEST_SEQUENCE.value
    shape = [_LARGEST_SIZE, _LARGEST_SIZE, x.shape[2], largest, x.shape[3]]
    return TensorDescriptor(x, shape, [2**64 // largest - stride, stride, of_heads, stride, 1], block, layout)


def numbers_of(x: Tensor, count: int) -> TensorDescriptor:
    """Descriptor of tiles of `count` numbers of a head of a contiguous (B, H, S) float32 tensor.

    TMA wants each head to begin at a multiple of 16 bytes: where the length is no multiple of 4, it reads a copy.
    """
    padding = -x.shape[2] % 4
    if padding:
        x = x.new_empty((*x.shape[:2], x.shape[2] + padding))[:, :, :-padding].copy_(x)  # in steps that are replayed
    return _descriptor(x, [1, 1, count], gl.NVMMASharedLayout(0, 32, 3))


def _tiles(x: Tensor, block: list[int]) -> TensorDescriptor:
    return _descriptor(x, block, gl.NVMMASharedLayout.get_default_for(block, _GLUON[x.dtype]))


def _descriptor(x: Tensor, block: list[int], layout: gl.NVMMASharedLayout) -> TensorDescriptor:
    """A dimension of size 1 may have any stride in PyTorch; TMA gets one that it accepts."""
    strides = [stride if size > 1 else _ANY_STRIDE for size, stride in zip(x.shape[:-1], x.stride())]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], block, layout)
