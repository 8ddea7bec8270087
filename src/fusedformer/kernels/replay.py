"""Launches that are made once, and then made again for other tensors of the same form.

Triton looks at every argument of a launch anew, and before that an op derives tiles, strides and grids: more than a
hundred microseconds of Python, on a GPU that computes a short attention in ten. But what it arrives at depends on the
forms of the tensors alone: shapes, strides, dtypes, device, alignment. So the second call of a form is recorded, what
it allocates, which views it takes of that, and what it launches; later ones do just that (`Plan`). Not the first: where
each call has another form, as with a growing cache, there is nothing to be had.

PyTorch's few ops that write to a tensor which is there already (`_WRITES`) are launches like the others, in their place
among them. Nothing else is assumed about the op: a call that computes otherwise is not recorded, and the op is called
each time.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fusedformer.kernels.triton_compat import INTERPRETED

MOST_FORMS = 1024  # of an op: where lengths never come again, what was recorded of them must go
_ALIGNMENT = 16  # bytes: whether an address is a multiple, Triton compiles in

_aten = torch.ops.aten
_EMPTY = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default, _aten.empty_like.default}
_ZEROS = {_aten.zeros.default, _aten.new_zeros.default, _aten.zeros_like.default}
# They write to what they are given, and nowhere else, whatever the values are; and return that.
_WRITES = {_aten.zero_.default, _aten.copy_.default, _aten.mul_.Tensor, _aten.amin.out}
# What torch.compile's code allocates by, on the current device: in half the time that torch.empty takes.
_empty_strided_cuda = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)
# Of a form that is no Plan: was it seen once, or can it not be recorded?
_SEEN, _NEVER = "seen", "never"
_local = threading.local()
_plans: list[dict[Any, "Plan | str"]] = []


if INTERPRETED:
    # Gluon takes names of Triton's language as they are when it is imported: not within a launch of the interpreter,
    # which replaces them until it is done.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton.experimental.gluon.language")


def replayed(environment: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Record an op's launcher, and replay it.

    The launcher takes tensors, numbers, None and lists of those, and returns a new tensor, or several in a tuple.

    Args:
        environment: of the same arguments, whatever else the launches depend on, hashable.
    """

    def decorate(op: Callable[..., Any]) -> Callable[..., Any]:
        plans: dict[Any, Plan | str] = {}
        _plans.append(plans)

        @functools.wraps(op)
        def call(*args: Any) -> Any:
            form = _form(environment(*args), args)
            plan = plans.get(form)
            if type(plan) is Plan:
                return plan(args)
            if plan is None:
                if len(plans) >= MOST_FORMS:
                    plans.clear()
                plans[form] = _SEEN
                return op(*args)
            if plan is _SEEN:
                result, plans[form] = _record(op, args)
                return result
            return op(*args)

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
        bound = [given.get(x.name, x.default) for x in kernel.params]
        recorder.launches.append((launcher(compiled, programs, recorder.device), bound))


def launcher(compiled: Any, programs: int, device: torch.device) -> Callable[..., None]:
    """What launches a compiled kernel, and does no more where nobody has hooks on launches.

    It takes all arguments of the kernel, compile-time ones too, as they were when it was compiled.
    """
    grid = (programs, 1, 1)
    usual = compiled[grid]
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    runtime, stream_of, index = triton.knobs.runtime, torch._C._cuda_getCurrentRawStream, device.index

    def launch(*args: Any) -> None:
        if _has_calls(runtime.launch_enter_hook) or _has_calls(runtime.launch_exit_hook):
            usual(*args)
        else:
            run(*grid, stream_of(index), function, metadata, None, None, None, *args)

    return launch


def _has_calls(hook: Any) -> bool:
    """A hook is None, a function, or a chain of those."""
    return hook is not None and bool(getattr(hook, "calls", True))


def launch_by(start: Callable[..., Any], args: Sequence[Any], by_name: dict[str, Any] | None = None) -> None:
    """Launch by `start(*args, **by_name)`, which needs nothing else."""
    by_name = by_name or {}
    with _disable_current_modes():
        start(*args, **by_name)
    if recorder := _recorder():
        recorder.launches.append(_by_position(start, args, by_name))


def _by_position(
    start: Callable[..., Any], args: Sequence[Any], by_name: dict[str, Any]
) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """What does as `start(*args, **by_name)` with all values by position, and these."""
    count, names = len(args), tuple(by_name)

    def start_by_position(*given: Any) -> None:
        start(*given[:count], **dict(zip(names, given[count:])))

    return start_by_position, (*args, *by_name.values())


def _recorder() -> "_Recorder | None":
    return getattr(_local, "recorder", None)


def _form(environment: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What launches depend on; in one piece, for every call comes by here."""
    form = [environment]
    for x in args:
        if isinstance(x, Tensor):
            form += (x.shape, x.stride(), x.dtype, x.get_device(), x.data_ptr() % _ALIGNMENT)
        else:
            form.append(tuple(x) if type(x) is list else x)
    return tuple(form)


def _record(op: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, "Plan | str"]:
    """The op's result, and how to come by it again, if that can be known."""
    # Of a tensor that is given twice, each has a name of its own: the next time they may be two.
    args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    device = next(x.device for x in args if isinstance(x, Tensor))
    recorder = _local.recorder = _Recorder(device)
    try:
        with recorder:
            result = op(*args)
    finally:
        _local.recorder = None
    try:
        return result, Plan(recorder, args, result)
    except KeyError:  # a tensor that came from elsewhere
        return result, _NEVER


class _View(NamedTuple):
    parent: Any  # a tensor; in a plan, its number
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # from the parent's first element

    def is_whole(self) -> bool:
        """Whether it is the parent over again."""
        like = (self.parent.dtype, self.parent.shape, self.parent.stride(), 0)
        return (self.dtype, self.shape, self.stride, self.offset) == like

    def of(self, parent: Tensor) -> Tensor:
        """The same view of another tensor."""
        if parent.dtype != self.dtype:
            parent = parent.view(self.dtype)
        return parent.as_strided(self.shape, self.stride, parent.storage_offset() + self.offset)


class _Recorder(TorchDispatchMode):
    """Notes what an op allocates, which views it takes, and what it launches or has PyTorch write."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.origins: dict[int, Callable[[], Tensor] | _View] = {}  # by id, of what is in `_kept`
        self.launches: list[tuple[Callable[..., Any], Sequence[Any]]] = []
        self.is_faithful = True
        self._kept: list[Tensor] = []  # so that no other tensor gets the id of one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _EMPTY or func in _ZEROS:
            self._note(result, _creator(result, is_zero=func in _ZEROS))
            self.is_faithful &= result.is_contiguous()
        elif func.is_view:
            parent = args[0]
            for x in [result] if isinstance(result, Tensor) else result:
                offset = x.storage_offset() - parent.storage_offset()
                self._note(x, _View(parent, x.dtype, tuple(x.shape), x.stride(), offset))
                self.is_faithful &= x.itemsize == parent.itemsize
        elif func in _WRITES:
            self.launches.append(_by_position(func, args, kwargs))
        else:
            self.is_faithful = False
        return result

    def _note(self, x: Tensor, origin: Callable[[], Tensor] | _View) -> None:
        self.origins[id(x)] = origin
        self._kept.append(x)


def _creator(x: Tensor, *, is_zero: bool) -> Callable[[], Tensor]:
    """What makes another tensor like x, empty or of zeros."""
    shape, stride = tuple(x.shape), x.stride()
    if is_zero:
        return functools.partial(torch.zeros, shape, dtype=x.dtype, device=x.device)
    if x.is_cuda and _empty_strided_cuda is not None:
        return functools.partial(_empty_strided_cuda, shape, stride, x.dtype)
    return functools.partial(torch.empty_strided, shape, stride, dtype=x.dtype, device=x.device)


class Plan:
    """The launches of an op for arguments of one form, and the tensors that they take, by number.

    The arguments' tensors come first, then what `_steps` makes, in order.
    """

    def __init__(self, recorder: _Recorder, args: Sequence[Any], result: Tensor | tuple[Tensor, ...]) -> None:
        """Raises KeyError if not all of what the op did is known."""
        if not recorder.is_faithful:
            raise KeyError
        self._inputs = [place for place, x in enumerate(args) if isinstance(x, Tensor)]
        self._steps: list[Callable[[], Tensor] | _View] = []
        numbers = {id(args[place]): number for number, place in enumerate(self._inputs)}

        def number_of(x: Tensor) -> int:
            if id(x) not in numbers:
                step = recorder.origins[id(x)]
                if isinstance(step, _View):
                    if step.is_whole():  # PyTorch detaches whatever it creates
                        return number_of(step.parent)
                    step = step._replace(parent=number_of(step.parent))
                self._steps.append(step)
                numbers[id(x)] = len(numbers)
            return numbers[id(x)]

        self._launches = [(start, *_template(values, number_of)) for start, values in recorder.launches]
        self._result = number_of(result) if isinstance(result, Tensor) else [number_of(x) for x in result]
        is_one_of_several = recorder.device.type == "cuda" and torch.cuda.device_count() > 1
        self._device = recorder.device if is_one_of_several else None

    def __call__(self, args: Sequence[Any]) -> Tensor | tuple[Tensor, ...]:
        if self._device is not None and self._device.index != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                return self(args)
        tensors = [args[place] for place in self._inputs]
        for step in self._steps:
            tensors.append(step.of(tensors[step.parent]) if type(step) is _View else step())  # type: ignore[operator]
        for start, template, fills in self._launches:
            start(*_filled(template, fills, tensors))
        numbers = self._result
        return tensors[numbers] if isinstance(numbers, int) else tuple([tensors[number] for number in numbers])


_Fill = int | Callable[[list[Tensor]], Any]  # the number of a tensor, or what makes a value of all tensors


def _template(values: Sequence[Any], number_of: Callable[[Tensor], int]) -> tuple[list[Any], list[tuple[int, _Fill]]]:
    """Arguments of a launch without tensors, and at which places which tensors, or what is made of them, belong."""
    template, fills = list(values), []
    for place, value in enumerate(values):
        fill = _fill(value, number_of)
        if fill is not None:
            template[place] = None
            fills.append((place, fill))
    return template, fills


def _fill(value: Any, number_of: Callable[[Tensor], int]) -> _Fill | None:
    """None for a value that holds no tensor."""
    if isinstance(value, Tensor):
        return number_of(value)
    if isinstance(value, tuple):
        template, fills = _template(value, number_of)
        return functools.partial(_tuple_of, type(value), template, fills) if fills else None
    if hasattr(value, "block_shape"):  # a descriptor of tiles for TMA
        return functools.partial(_descriptor_of, type(value), vars(value) | {"base": None}, number_of(value.base))
    return None


def _filled(template: list[Any], fills: list[tuple[int, _Fill]], tensors: list[Tensor]) -> list[Any]:
    """The template's values, with what belongs at those places."""
    values = template.copy()
    for place, fill in fills:
        values[place] = tensors[fill] if isinstance(fill, int) else fill(tensors)
    return values


def _tuple_of(kind: Any, template: list[Any], fills: list[tuple[int, _Fill]], tensors: list[Tensor]) -> Any:
    values = _filled(template, fills, tensors)
    return kind._make(values) if hasattr(kind, "_make") else kind(values)


def _descriptor_of(kind: Any, attributes: dict[str, Any], number: int, tensors: list[Tensor]) -> Any:
    """Without the checks of its constructor: they have been made for this form."""
    descriptor = kind.__new__(kind)
    vars(descriptor).update(attributes, base=tensors[number])
    return descriptor
