"""The operations of Gluon that programs share memory by, by their names there: what a kernel's gl.load becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedformer.simulator.asynchronous import load_tile, multiply, store_tile
from fusedformer.simulator.barriers import MBarrier
from fusedformer.simulator.errors import UnsupportedError
from fusedformer.simulator.global_memory import Descriptor, Pointer
from fusedformer.simulator.inline_assembly import run_assembly
from fusedformer.simulator.program import Program
from fusedformer.simulator.shared_memory import SharedView
from fusedformer.simulator.values import Int32, PendingProduct, Register, wrap


class Operations:
    """Operations of the program that runs; each public method is one, called by its name in Gluon.

    `mbarrier_init` stands for `mbarrier.init`, and so on for the names of that module.
    """

    def __init__(self) -> None:
        self.program: Program | None = None

    @property
    def _running(self) -> Program:
        assert self.program
        return self.program

    def table(self) -> dict[str, Callable[..., Any]]:
        """The operations by their names in Gluon."""
        names = [name for name in dir(self) if not name.startswith("_") and name not in ("program", "table")]
        return {name.replace("mbarrier_", "mbarrier.", 1): getattr(self, name) for name in names}

    # Programs and partitions

    def program_id(self, axis: int) -> Int32:
        return Int32(self._running.pid[axis] if axis < len(self._running.pid) else 0)

    def num_programs(self, axis: int) -> Int32:
        return Int32(self._running.grid[axis] if axis < len(self._running.grid) else 1)

    def num_warps(self) -> int:
        return self._running.partition.num_warps

    def num_ctas(self) -> int:
        return 1

    def warp_specialize(
        self,
        functions_and_args: Sequence[tuple[Any, Sequence[Any]]],
        worker_num_warps: Sequence[int],
        worker_num_regs: Sequence[int] | None = None,
    ) -> Any:
        return self._running.specialize(functions_and_args, worker_num_warps, worker_num_regs)

    def barrier(self, *, cluster: bool = False) -> None:
        """Between the threads of a partition, which are one here."""

    thread_barrier = barrier

    def inline_asm_elementwise(
        self, asm: str, constraints: str, args: Sequence[Any], dtype: Any, is_pure: bool, pack: int
    ) -> Any:
        return run_assembly(self._running, asm, args, dtype)

    # Memory

    def allocate_shared_memory(
        self, element_ty: torch.dtype, shape: Sequence[int], layout: object, value: Register | None = None
    ) -> SharedView:
        view = self._running.allocate(element_ty, shape)
        if value is not None:
            view.store(value)
        return view

    def load(self, pointer: Pointer, mask: Any = True, other: Any = None, **hints: Any) -> Any:
        self._running.scheduler.step()
        return wrap(pointer.load(mask, other))

    def store(self, pointer: Pointer, value: Any, mask: Any = True, **hints: Any) -> None:
        self._running.scheduler.step()
        pointer.store(value, mask)

    def atomic_add(self, pointer: Pointer, val: Any, mask: Any = True, **hints: Any) -> Any:
        self._running.scheduler.step()
        return wrap(pointer.add(val, mask))

    def fence_async_shared(self, cluster: bool = False) -> None:
        self._running.partition.past.fence()  # which no other partition could notice

    # mbarriers

    def mbarrier_init(self, mbarrier: SharedView, count: int) -> None:
        partition = self._running.scheduler.step()
        place = mbarrier.offset
        if mbarrier.data.numel() != 1 or place in mbarrier.allocation.barriers:
            raise ValueError(f"{mbarrier.name}, of shape {mbarrier.shape}, is one mbarrier already or no single one")
        moment = (partition.timeline, partition.timeline.now)
        mbarrier.allocation.barriers[place] = MBarrier(mbarrier.name, count, moment, self._running.has_clocks)

    def mbarrier_invalidate(self, mbarrier: SharedView) -> None:
        self._running.scheduler.step()
        self._running.barrier_at(mbarrier)
        del mbarrier.allocation.barriers[mbarrier.offset]

    def mbarrier_arrive(self, mbarrier: SharedView, *, count: int = 1, pred: Any = True) -> None:
        partition = self._running.scheduler.step()
        if pred:
            self._running.barrier_at(mbarrier).arrive(partition.past, count)

    def mbarrier_expect(self, mbarrier: SharedView, bytes: int, pred: Any = True) -> None:
        partition = self._running.scheduler.step()
        if pred:
            self._running.barrier_at(mbarrier).arrive(partition.past, 1, bytes)

    def mbarrier_wait(self, mbarrier: SharedView, phase: int, pred: Any = True, deps: Sequence[Any] = ()) -> None:
        if not pred:
            return
        barrier = self._running.barrier_at(mbarrier)
        partition = self._running.scheduler.step(
            lambda: barrier.is_over(phase), lambda: f"phase {phase} of {barrier.name}, {barrier.state()}"
        )
        partition.past.join(barrier.released)
        barrier.note_wait(partition.timeline)

    # TMA

    def async_load(
        self,
        tensor_desc: Descriptor,
        coord: Sequence[Any],
        barrier: SharedView,
        result: SharedView,
        pred: Any = True,
        multicast: bool = False,
    ) -> None:
        if multicast:
            raise UnsupportedError("a TMA load to several programs of a cluster")
        partition = self._running.scheduler.step()
        if pred:
            of_load = self._running.barrier_at(barrier, is_asynchronous=True)
            load_tile(self._running.scheduler, partition, tensor_desc, coord, of_load, result)

    def async_store(self, tensor_desc: Descriptor, coord: Sequence[Any], src: SharedView) -> None:
        store_tile(self._running.scheduler, tensor_desc, coord, src, is_reduction=False)

    def async_atomic_add(self, tensor_desc: Descriptor, coord: Sequence[Any], src: SharedView) -> None:
        store_tile(self._running.scheduler, tensor_desc, coord, src, is_reduction=True)

    async_copy_global_to_shared = async_load
    async_copy_shared_to_global = async_store

    def store_wait(self, pendings: int) -> None:
        self._running.scheduler.wait(self._running.partition.stores, pendings)

    # The tensor core

    def warpgroup_mma(
        self,
        a: Register | SharedView,
        b: SharedView,
        acc: Register | PendingProduct,
        *,
        use_acc: Any = True,
        precision: object = None,
        max_num_imprecise_acc: object = None,
        is_async: bool = False,
    ) -> Any:
        product = multiply(self._running.scheduler, a, b, acc, bool(use_acc))
        return product if is_async else self.warpgroup_mma_wait(0, [product])

    def warpgroup_mma_wait(self, num_outstanding: int = 0, deps: Sequence[Any] | None = None) -> Any:
        number = self._running.scheduler.wait(self._running.partition.products, num_outstanding)
        if not deps:
            raise ValueError("warpgroup_mma_wait needs the products that it waits for as deps")
        results = tuple(x.finished() if isinstance(x, PendingProduct) and x.number <= number else x for x in deps)
        return results[0] if len(results) == 1 else results
