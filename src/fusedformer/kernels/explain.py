"""What one call of a function of this package would run, why, and what would have to change for something faster."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fusedformer.kernels import emulation, library
from fusedformer.kernels.attention import tuning
from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.attention.hopper import dispatch
from fusedformer.kernels.attention.hopper import tuning as hopper_tuning

if TYPE_CHECKING:
    from fusedformer.kernels.attention.launch import Problem

_active = False


def is_active() -> bool:
    """Whether a call is being explained now: nothing is computed, and the device may be another one."""
    return _active


@dataclass(frozen=True)
class Step:
    """One op that a call runs."""

    op: str
    implementation: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.op}: {self.implementation}", *(f"  - {note}" for note in self.notes)])


@dataclass(frozen=True)
class Explanation:
    """The ops that a call runs, in order."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps)) or "no op of fusedformer"


def explain(function: Callable[..., Any], *args: Any, arch: int | None = None, **kwargs: Any) -> Explanation:
    """Say what `function(*args, **kwargs)` would run. Nothing is computed; arguments are checked as in a call.

    Args:
        function: of this package, or one that calls such functions.
        args: its arguments; tensors on the device in question.
        arch: compute capability, 90 for 9.0, to explain for in place of the device of the tensors.
        kwargs: its keyword arguments.

    Returns:
        A step for each op: its name, its implementation, and notes; `str()` of it is for people.

    Raises:
        ValueError: as `function`.
    """
    global _active
    recorder = _Recorder(arch)
    before, _active = _active, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), recorder:
            args, kwargs = tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
            function(*args, **kwargs)
    finally:
        _active = before
    return Explanation(tuple(recorder.steps))


class _Recorder(TorchDispatchMode):
    def __init__(self, arch: int | None) -> None:
        super().__init__()
        self._arch = arch
        self.steps: list[Step] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == library.NAMESPACE:
            self.steps.append(_step(func, args, self._arch))
        return func(*args, **(kwargs or {}))


def _step(func: Any, args: tuple[Any, ...], arch: int | None) -> Step:
    op = func._schema.name.partition("::")[2]
    device = next(x for x in args if isinstance(x, Tensor)).device
    arch = arch or _arch_of(device)
    if op == "attention_fwd" and arch is not None:
        return _attention_step(op, arch, *args)
    if op == "attention_fp8_fwd" and arch is not None:
        return _fp8_step(op, arch, *args)
    return Step(op, *implementation(op, device, arch=arch, is_emulated=emulation.is_active()))


def implementation(
    op: str, device: torch.device, *, arch: int | None = None, is_emulated: bool = False
) -> tuple[str, tuple[str, ...]]:
    """What computes op `op` of the package's namespace for tensors on `device`, and notes."""
    arch = arch or _arch_of(device)
    if arch is None:
        return _without_kernel(device, is_emulated)
    if op.startswith("attention"):
        return f"Triton kernel for sm_{arch}", ()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{library.NAMESPACE}::{op}", "CUDA"):
        return "plain PyTorch", (f"the CUDA extension is {library.extension_status()}",)
    return f"CUDA kernel for sm_{arch}", ()


def _arch_of(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _without_kernel(device: torch.device, is_emulated: bool) -> tuple[str, tuple[str, ...]]:
    if is_emulated:
        return "the device code, emulated", ("for tests: it is slow",)
    return f"plain PyTorch on {device.type}", (f"there is no kernel for {device.type}: a CUDA tensor would get one",)


def _attention_step(op: str, arch: int, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Step:
    from fusedformer.kernels.attention.launch import Problem

    problem = Problem(q, k, v, Extras(*settings), arch)
    reason = problem.hopper_refusal("fwd")
    if reason is None:
        return Step(op, f"Gluon kernel for sm_{arch}", tuple(_hopper_notes("fwd", problem)))
    notes = [*_attention_notes(arch, problem), *([f"not the Hopper tier: {reason}"] if arch == dispatch.ARCH else [])]
    return Step(op, f"Triton kernel for sm_{arch}", tuple(notes))


def _fp8_step(op: str, arch: int, q: Tensor, k: Tensor, v: Tensor, *descales_and_settings: Any) -> Step:
    from fusedformer.kernels.attention.fp8 import launch

    settings = descales_and_settings[3:]
    problem = launch.Problem(q, k, v, Extras(*settings), arch)
    reason = launch.refusal(problem, launch.allocate_out(problem))
    if reason is None:
        notes = ("v is transposed before, by a Triton kernel", *_hopper_notes(launch.KERNEL, problem))
        return Step(op, f"Gluon kernel for sm_{arch}, products in float8", notes)
    step = _attention_step(op, arch, *(x.to(launch.reference.OUT_DTYPE) for x in (q, k, v)), *settings)
    notes = (f"no products in float8: {reason}", "q, k and v are copied to bfloat16 first", *step.notes)
    return Step(op, step.implementation, notes)


def _hopper_notes(kernel: str, problem: "Problem") -> Iterator[str]:
    row = dispatch.row_for(kernel, problem)
    assert row is not None  # it serves
    tile = f"tile of {row.program_rows} queries by {row.block} keys"
    grid = ", a persistent grid" * row.persistent
    yield f"{tile}, {row.consumers} consumer warpgroups, {row.stages} stages{grid}"
    extras = problem.extras
    feature = "softcap" if extras.softcap else "alibi" if extras.slopes is not None else None
    evidence = hopper_tuning.SCORED[feature, row.head_dim, row.head_dim_v] if feature else row.evidence
    yield f"evidence of the tile: {evidence}" + ("" if row.recorded else " (compiled and simulated, never timed)")
    group = problem.q.shape[2] // problem.k.shape[2]
    if (heads := hopper_tuning.heads_of_tile(group, problem.q.shape[1])) > 1:
        yield f"queries are few: those of {group} heads share a tile (of {heads}), which reads keys and values once"
    yield from _padding_notes(problem, row.head_dim, row.head_dim_v)
    yield from _repair_notes(problem)


def _padding_notes(problem: "Problem", padded: int, padded_v: int) -> Iterator[str]:
    for name, head_dim, size in (("q", problem.q.shape[3], padded), ("v", problem.v.shape[3], padded_v)):
        if size != head_dim:
            yield f"head dimension {head_dim} of {name} is computed as {size}"


def _repair_notes(problem: "Problem") -> Iterator[str]:
    if len(problem.launches) > 1:
        yield "a second launch looks for NaN that came from hidden positions, and mends it"


def _attention_notes(arch: int, problem: "Problem") -> Iterator[str]:
    from fusedformer.kernels.attention.launch import precision

    q, k, v = problem.q, problem.k, problem.v
    exact = problem.launches[0][0]
    tile = problem.tile("fwd", exact)
    yield f"tile of {tile.block_m} queries by {tile.block_n} keys, {tile.num_warps} warps, {tile.num_stages} stages"
    if exact:
        yield f"elementwise sums, much slower: float32 of head dimension over {tuning.LONGEST_FLOAT32}; use float16"
    else:
        evidence = tuning.row_of("fwd", arch, q.dtype, problem.head_dim).evidence
        if isinstance(evidence, tuning.Predicted) and problem.is_busy:
            evidence = tuning.STATIC
        is_timed = evidence != tuning.STATIC and not isinstance(evidence, tuning.Predicted)
        yield f"evidence of the tile: {evidence}" + ("" if is_timed else " (compiled, not timed)")
    if (tuned := tuning.tuned_arch(arch)) != arch:
        yield f"sm_{arch} has no tiles of its own: those of sm_{tuned} serve"
    if q.dtype == torch.float32 and precision() == "ieee":
        yield "float32 without tensor cores: use bfloat16 or float16, or allow TF32 (torch.backends.cuda.matmul)"
    yield from _padding_notes(problem, *(1 << max(4, (x.shape[3] - 1).bit_length()) for x in (q, v)))
    if problem.is_busy:
        yield "a smaller tile, for scores take more than scaling: mask, bias, ALiBi, softcap or dropout"
    if problem.extras.mask is not None:
        yield "the mask is read in every tile: causal, window and packed sequences skip tiles instead"
    yield from _repair_notes(problem)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(3) != 1 or any(stride * tensor.itemsize % 16 for stride in tensor.stride()[:3]):
            yield f"{name} has strides {tuple(tensor.stride())}: no 16-byte loads, which want dense rows of 16 bytes"
