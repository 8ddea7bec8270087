"""A trace of one step of a model: every op with its work and its component, every allocation with its lifetime.

Seen from below PyTorch's autograd, so the backward and the optimizer are in it. On the meta device, whose tensors have
shapes and storages but no data, a step of a million tokens is traced in the time of a thousand; on a real device the
same trace comes with the time of each op.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from fusedformer.benchmarks.profile.components import OTHER, component
from fusedformer.benchmarks.profile.formulas import Work
from fusedformer.benchmarks.profile.work import tensors, unit_of, work_of, workspace_of

FORWARD, BACKWARD, RECOMPUTE = "forward", "backward", "recompute"
BLOCKS = "blocks"  # a ModuleList of this name holds the repeated blocks of a model
INPUTS = "inputs"


class OpClock(Protocol):
    """Marks points of time between ops."""

    def mark(self) -> Any:
        """A point of time, now on the host or when the device gets there."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks, once everything has finished."""


@dataclass
class TracedOp:
    """One op of a step; its time in seconds where a clock was there."""

    name: str
    path: tuple[str, ...]
    component: str
    phase: str
    work: Work
    on_matrix_unit: bool = False  # a product of 16-bit numbers
    head_dim: int = 0  # of a fused attention
    workspace: int = 0
    marks: tuple[Any, Any] | None = None
    seconds: float | None = None

    @property
    def block(self) -> int | None:
        """Which of the repeated blocks it belongs to."""
        return block_of(self.path)


@dataclass(eq=False)
class Allocation:
    """One storage: alive from op `born` until op `died` begins."""

    n_bytes: int
    born: int  # index of the op that made it, -1 of what was there before
    kind: str  # such as "parameters", or the component of the op that made it
    what: str  # shape, dtype and op
    path: tuple[str, ...] = ()
    died: int | None = None

    @property
    def block(self) -> int | None:
        """Which of the repeated blocks it belongs to."""
        return block_of(self.path)


def block_of(path: Iterable[str]) -> int | None:
    """The number behind "blocks" in a path, if there is one."""
    names = list(path)
    return int(names[names.index(BLOCKS) + 1]) if BLOCKS in names[:-1] else None


@dataclass
class Trace:
    """What one step did, in order."""

    ops: list[TracedOp] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    forward_end: int = 0  # ops before the backward; all of them without one

    def live_bytes(self) -> list[int]:
        """Bytes that are allocated after each op, its workspace included."""
        changes = [0] * (len(self.ops) + 1)
        for allocation in self.allocations:
            changes[max(0, allocation.born)] += allocation.n_bytes
            if allocation.died is not None:
                changes[allocation.died] -= allocation.n_bytes
        live, total = [], 0
        for change, op in zip(changes, self.ops, strict=False):
            total += change
            live.append(total + op.workspace)
        return live

    def alive_at(self, index: int) -> list[Allocation]:
        """What is allocated after op `index`."""
        return [a for a in self.allocations if a.born <= index and (a.died is None or a.died > index)]


class Tracer(TorchDispatchMode):
    """A context in which the ops of one step are traced.

    Args:
        model: whose modules name the ops.
        clock: times the ops; None does not.
        device_type: "cuda" or "cpu": whose kernels allocate memory for themselves.
    """

    def __init__(self, model: nn.Module, *, clock: OpClock | None = None, device_type: str = "cuda") -> None:
        super().__init__()
        self.trace = Trace()
        self._names = {id(module): tuple(name.split(".")) for name, module in model.named_modules() if name}
        self._clock, self._device_type = clock, device_type
        self._known: dict[int, tuple[Any, Allocation]] = {}  # by id of the storage
        self._path: list[tuple[str, ...]] = []
        self._paths_by_node: list[tuple[int, tuple[str, ...]]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "Tracer":
        self._hooks = [
            torch_module.register_module_forward_pre_hook(self._enter_module),
            torch_module.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        for hook in self._hooks:
            hook.remove()
        if not self.trace.forward_end:
            self.trace.forward_end = len(self.trace.ops)
        for op in self.trace.ops:
            if self._clock is not None and op.marks is not None and kind is None:
                op.seconds = self._clock.seconds(*op.marks)

    def hold(self, kind: str, held: Iterable[Tensor]) -> None:
        """These tensors are called `kind` from now on; those not yet known were there before the step."""
        for tensor in held:
            allocation = self._allocation(tensor, -1, kind, (), "")
            allocation.kind = kind
            allocation.what = _what(tensor)

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """A name around ops, as a module's."""
        self._path.append((*self._here, name))
        try:
            yield
        finally:
            self._path.pop()

    @property
    def _here(self) -> tuple[str, ...]:
        return self._path[-1] if self._path else ()

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        name = self._names.get(id(module))
        self._path.append(self._here if name is None else name)

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        path, phase = self._place()
        if self._clock is None:
            out, marks = func(*args, **kwargs), None
        else:
            start = self._clock.mark()
            out = func(*args, **kwargs)
            marks = (start, self._clock.mark())
        self._record(func, args, kwargs, out, path, phase, marks)
        return out

    def _place(self) -> tuple[tuple[str, ...], str]:
        """Path and phase of the op that comes; a backward op has the path of the op that it is the gradient of."""
        node = torch._C._current_autograd_node()
        if node is None:
            self._paths_by_node.append((torch._C._autograd._get_sequence_nr(), self._here))
            return self._here, FORWARD
        if not self.trace.forward_end:
            self.trace.forward_end = len(self.trace.ops)
        if self._path:
            self._paths_by_node.append((torch._C._autograd._get_sequence_nr(), self._here))
            return self._here, RECOMPUTE
        return self._path_of(node._sequence_nr()), BACKWARD

    def _path_of(self, number: int) -> tuple[str, ...]:
        """The path of the op whose autograd node has this number: it was made before the op ran, so it is smaller."""
        low, high = 0, len(self._paths_by_node)
        while low < high:
            middle = (low + high) // 2
            if self._paths_by_node[middle][0] > number:
                high = middle
            else:
                low = middle + 1
        return self._paths_by_node[low][1] if low < len(self._paths_by_node) else (OTHER,)

    def _record(
        self, func: Any, args: Any, kwargs: Any, out: Any, path: tuple[str, ...], phase: str, marks: Any
    ) -> None:
        name = func._schema.name.partition("::")[2]
        index = len(self.trace.ops)
        results = tensors(out)
        mutated = [
            x
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for x in tensors(value)
        ]
        fresh = [x for x in results if id(x.untyped_storage()) not in self._known]
        of = component(name, path)
        if fresh or mutated or marks:
            work = work_of(name, args, kwargs, fresh, mutated) if fresh or mutated else Work(0, 0)
            workspace = workspace_of(name, args, self._device_type)
            unit = unit_of(name, args)
            self.trace.ops.append(TracedOp(name, path, of, phase, work, *unit, workspace, marks))
        for tensor in fresh:
            self._allocation(tensor, index, f"{of} {phase}", path, f"{_what(tensor)} of {name}")

    def _allocation(self, tensor: Tensor, born: int, kind: str, path: tuple[str, ...], what: str) -> Allocation:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._known:
            allocation = Allocation(storage.nbytes(), born, kind, what, path)
            self.trace.allocations.append(allocation)
            self._known[key] = weakref.ref(storage, partial(self._free, key)), allocation
        return self._known[key][1]

    def _free(self, key: int, _: Any) -> None:
        self._known.pop(key)[1].died = len(self.trace.ops)


def _what(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
