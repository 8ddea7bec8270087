"""Launches that are made once, and then made again for other tensors of the same form.

Triton looks at every argument of a launch anew, and before that an op derives tiles, strides and grids: more than a
hundred microseconds of Python, on a GPU that computes a short attention in ten. But what it arrives at depends on the
forms of the tensors alone: shapes, strides, dtypes, device, alignment. So the first call of a form is recorded, what it
allocates, which views it takes of that, and what it launches; later ones do just that (`Plan`).

Nothing is assumed about the op: a call that does anything else, as to compute with PyTorch, is not recorded, and the op
is called each time.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fusedformer.kernels.triton_compat import INTERPRETED

MOST_FORMS = 1024  # of an op: where lengths never come again, what was recorded of them must go
_ALIGNMENT = 16  # bytes: whether an address is a multiple, Triton compiles in

_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default, _aten.empty_like.default}
_ZEROS = {_aten.zeros.default, _aten.new_zeros.default, _aten.zeros_like.default}
_local = threading.local()
_plans: list[dict[Any, "Plan | None"]] = []


def replayed(environment: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Record an op's launcher, and replay it.

    The launcher takes tensors, numbers, None and lists of those, and returns a tuple of tensors, all of them new.

    Args:
        environment: of the same arguments, whatever else the launches depend on, hashable.
    """

    def decorate(op: Callable[..., Any]) -> Callable[..., Any]:
        plans: dict[Any, Plan | None] = {}
        _plans.append(plans)

        @functools.wraps(op)
        def call(*args: Any) -> Any:
            form = (environment(*args), *map(_form, args))
            if form in plans:
                plan = plans[form]
                return op(*args) if plan is None else plan(args)
            if len(plans) >= MOST_FORMS:
                plans.clear()
            result, plans[form] = _record(op, args)
            return result

        return call

    return decorate


def forget() -> None:
    """Drop what was recorded: for whoever changes what the launches depend on."""
    for plans in _plans:
        plans.clear()


def launch(kernel: Any, programs: int, args: Sequence[Any], **options: Any) -> None:
    """Launch a Triton or Gluon kernel: `kernel[(programs,)](*args, **options)`."""
    start = functools.partial(kernel[(programs,)], **options)
    if INTERPRETED:
        launch_by(start, args)
        return
    compiled = start(*args)
    if recorder := _recorder():
        given = dict(zip(kernel.arg_names, args)) | options
        bound = [given[x.name] if x.name in given else x.default for x in kernel.params]
        recorder.launches.append((compiled[(programs, 1, 1)], bound))


def launch_by(start: Callable[..., Any], args: Sequence[Any]) -> None:
    """Launch by `start(*args)`, which needs nothing else."""
    with _disable_current_modes():
        start(*args)
    if recorder := _recorder():
        recorder.launches.append((start, args))


def _recorder() -> "_Recorder | None":
    return getattr(_local, "recorder", None)


def _form(x: Any) -> Any:
    """Of an argument, what the launches depend on."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % _ALIGNMENT
    return tuple(x) if isinstance(x, list) else x


def _record(op: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, "Plan | None"]:
    """The op's result, and how to come by it again; None if that is not known."""
    # Of a tensor that is given twice, each has a name of its own: the next time they may be two.
    args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    recorder = _local.recorder = _Recorder(args)
    try:
        with recorder:
            result = op(*args)
    finally:
        _local.recorder = None
    try:
        return result, Plan(recorder, args, result)
    except KeyError:  # a tensor that came from elsewhere
        return result, None


class _View(NamedTuple):
    parent: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # from the parent's first element

    def of(self, parent: Tensor) -> Tensor:
        """The same view of another tensor."""
        if parent.dtype != self.dtype:
            parent = parent.view(self.dtype)
        return parent.as_strided(self.shape, self.stride, parent.storage_offset() + self.offset)


class _Recorder(TorchDispatchMode):
    """Notes what an op allocates, which views it takes and what it launches; tensors have numbers, from 0."""

    def __init__(self, args: Sequence[Any]) -> None:
        super().__init__()
        self._seen = [x for x in args if isinstance(x, Tensor)]  # kept, so that no other tensor gets the place of one
        self._numbers = {id(x): number for number, x in enumerate(self._seen)}
        self.made: list[Callable[..., Tensor] | _View] = []  # of the numbers after the arguments'
        self.launches: list[tuple[Callable[..., Any], Sequence[Any]]] = []
        self.is_faithful = True

    def number(self, x: Tensor) -> int:
        """Raises KeyError for a tensor that came from elsewhere."""
        return self._numbers[id(x)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS or func in _ZEROS:
            create = torch.zeros if func in _ZEROS else torch.empty
            self._note(result, functools.partial(create, tuple(result.shape), dtype=result.dtype, device=result.device))
            self.is_faithful &= result.is_contiguous()
        elif func.is_view and id(args[0]) in self._numbers:
            parent = args[0]
            for x in [result] if isinstance(result, Tensor) else result:
                offset = x.storage_offset() - parent.storage_offset()
                self._note(x, _View(self.number(parent), x.dtype, tuple(x.shape), x.stride(), offset))
                self.is_faithful &= x.itemsize == parent.itemsize
        else:
            self.is_faithful = False
        return result

    def _note(self, x: Tensor, how: Callable[..., Tensor] | _View) -> None:
        self._numbers[id(x)] = len(self._seen)
        self._seen.append(x)
        self.made.append(how)


class Plan:
    """The allocations, views and launches of an op for arguments of one form."""

    def __init__(self, recorder: _Recorder, args: Sequence[Any], result: tuple[Tensor, ...]) -> None:
        """Raises KeyError if not all of what the op did is known."""
        if not recorder.is_faithful:
            raise KeyError
        self._inputs = [place for place, x in enumerate(args) if isinstance(x, Tensor)]
        self._launches = [(start, *_template(values, recorder)) for start, values in recorder.launches]
        self._result = [recorder.number(x) for x in result]
        if min(self._result, default=0) < len(self._inputs):
            raise KeyError  # not new
        self._made = recorder.made
        self._device = next(args[place].device for place in self._inputs)

    def __call__(self, args: Sequence[Any]) -> tuple[Tensor, ...]:
        if self._device.type == "cuda" and self._device.index != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                return self(args)
        tensors = [args[place] for place in self._inputs]
        for how in self._made:
            tensors.append(how.of(tensors[how.parent]) if type(how) is _View else how())
        for start, template, fills in self._launches:
            values = template.copy()
            for place, fill in fills:
                values[place] = tensors[fill] if type(fill) is int else fill(tensors)
            start(*values)
        return tuple([tensors[number] for number in self._result])


def _template(values: Sequence[Any], recorder: _Recorder) -> tuple[list[Any], list[tuple[int, Any]]]:
    """Arguments of a launch without tensors, and at which places which tensors, or what is made of them, belong."""
    fills = [(place, fill) for place, value in enumerate(values) if (fill := _fill(value, recorder)) is not None]
    template = list(values)
    for place, _ in fills:
        template[place] = None
    return template, fills


def _fill(value: Any, recorder: _Recorder) -> int | Callable[[list[Tensor]], Any] | None:
    """The number of a tensor, or what makes a value that holds tensors from all of them; None for other values."""
    if isinstance(value, Tensor):
        return recorder.number(value)
    if isinstance(value, tuple):
        template, fills = _template(value, recorder)
        return functools.partial(_fill_tuple, type(value), template, fills) if fills else None
    if hasattr(value, "block_shape"):  # a descriptor of tiles for TMA
        attributes = vars(value) | {"base": None}
        return functools.partial(_fill_descriptor, type(value), attributes, recorder.number(value.base))
    return None


def _fill_tuple(kind: Any, template: list[Any], fills: list[tuple[int, Any]], tensors: list[Tensor]) -> Any:
    values = template.copy()
    for place, fill in fills:
        values[place] = tensors[fill] if type(fill) is int else fill(tensors)
    return kind._make(values) if hasattr(kind, "_make") else kind(values)


def _fill_descriptor(kind: Any, attributes: dict[str, Any], number: int, tensors: list[Tensor]) -> Any:
    """Without the checks of its constructor: they have been made for this form."""
    descriptor = kind.__new__(kind)
    vars(descriptor).update(attributes, base=tensors[number])
    return descriptor
