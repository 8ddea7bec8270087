"""What runs beside the partitions: TMA copies and the tensor core.

A TMA load fills its tile with NaN at once, and with the data later, in two pieces; a TMA store and a matrix product
read shared memory later, in the order of their issue. How much later, the scheduler draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedformer.simulator.barriers import MBarrier
from fusedformer.simulator.errors import Hazard
from fusedformer.simulator.global_memory import REDUCED, STORED, Descriptor
from fusedformer.simulator.scheduler import Event, Partition, Scheduler
from fusedformer.simulator.shared_memory import NEVER, SharedView
from fusedformer.simulator.values import PendingProduct, Register

WARPGROUP = 4  # warps, which issue a product together
INSTRUCTION_ROWS = 64  # of a product, for each warpgroup
INSTRUCTION_DEPTH_BYTES = 32  # of a row of `a`


def load_tile(
    scheduler: Scheduler,
    partition: Partition,
    descriptor: Descriptor,
    coordinates: Sequence[Any],
    barrier: MBarrier,
    result: SharedView,
) -> None:
    """Put a TMA load under way, whose bytes `barrier` counts."""
    past = partition.past.copy()
    tile = torch.zeros_like(result.data, memory_format=torch.contiguous_format)
    inside, of_tile = descriptor.clip(coordinates, tile)
    inside.check_unwritten()
    of_tile.copy_(inside.data)
    access = result.touch(barrier.timeline, NEVER, past, is_write=True, is_asynchronous=True)
    result.data.fill_(result.allocation.poison)
    halves = list(zip(_halves(result.data), _halves(tile), strict=True))
    landed = 0

    def land(place: torch.Tensor, data: torch.Tensor) -> None:
        nonlocal landed
        place.copy_(data)
        phase = barrier.land(past, data.nbytes)
        landed += 1
        if landed == len(halves):
            access.time = phase

    for place, data in halves:
        scheduler.events.append(Event("TMA load", object(), _bind(land, place, data)))


def _bind(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    return lambda: function(*arguments)


def _halves(x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Two halves along the first dimension that has two."""
    dim = next((dim for dim, size in enumerate(x.shape) if size > 1), 0)
    return x.chunk(2, dim)


def store_tile(
    scheduler: Scheduler, descriptor: Descriptor, coordinates: Sequence[Any], source: SharedView, *, is_reduction: bool
) -> None:
    """Put a TMA store, or an addition to what is there, under way."""
    partition = scheduler.step()
    queue = partition.stores
    inside, of_tile = descriptor.clip(coordinates, source.data)
    source.touch(queue, queue.now + 1, partition.past, is_write=False, is_asynchronous=True)
    inside.mark(REDUCED if is_reduction else STORED)

    def finish() -> None:
        inside.data.copy_(inside.data + of_tile if is_reduction else of_tile)

    scheduler.start(queue, "TMA store", finish)


def multiply(
    scheduler: Scheduler, a: Register | SharedView, b: SharedView, acc: Register | PendingProduct, use_acc: bool
) -> PendingProduct:
    """Put `a @ b`, plus `acc` if `use_acc`, in float32 under way."""
    partition = scheduler.step()
    _check_product(partition, a, b, acc)
    queue = partition.products
    product = PendingProduct(queue.now + 1)
    for operand in (a, b):
        if isinstance(operand, SharedView):
            operand.touch(queue, product.number, partition.past, is_write=False, is_asynchronous=True)

    def finish() -> None:
        value = a.data.float() @ b.data.float()
        if use_acc:
            value += (acc.finished() if isinstance(acc, PendingProduct) else acc).data
        product.value = value

    scheduler.start(queue, "warpgroup_mma", finish)
    return product


def _check_product(partition: Partition, a: Any, b: Any, acc: Any) -> None:
    if not isinstance(a, (Register, SharedView)) or not isinstance(b, SharedView):
        raise TypeError(f"warpgroup_mma of {type(a).__name__} and {type(b).__name__}: the second is in shared memory")
    if not isinstance(acc, (Register, PendingProduct)):
        raise TypeError(f"warpgroup_mma adds to {type(acc).__name__}")
    if partition.num_warps % WARPGROUP:
        raise Hazard(f"warpgroup_mma by {partition.name}, which has {partition.num_warps} warps")
    shapes = f"{a.dtype} {a.shape} and {b.dtype} {b.shape}"
    if a.dtype != b.dtype or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise TypeError(f"warpgroup_mma of {shapes}")
    rows, depth = a.shape
    if rows % INSTRUCTION_ROWS or b.shape[1] % 8 or (depth * a.dtype.itemsize) % INSTRUCTION_DEPTH_BYTES:
        raise ValueError(f"warpgroup_mma of {shapes}: rows by 64, columns by 8, depth by 32 bytes")
    for name, operand, dim in (("first", a, 1), ("second", b, 0)):
        if operand.dtype.itemsize < 2 and isinstance(operand, SharedView) and operand.data.stride(dim) != 1:
            raise ValueError(f"warpgroup_mma of {shapes}: the {name} is not dense in the dimension that is summed over")
    if isinstance(acc, Register) and (acc.shape != [rows, b.shape[1]] or acc.dtype != torch.float32):
        raise TypeError(f"warpgroup_mma of {shapes} adds to {acc.dtype} {acc.shape}")
