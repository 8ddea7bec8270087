"""What differs between Triton's compiler and its interpreter, and between Triton 3.6 and 3.7.

The interpreter of both versions multiplies bfloat16 as raw bits in `tl.dot` and truncates when it rounds float32 to
bfloat16, so kernels call `dot` and `narrow` instead. Compiled, these are `tl.dot` and a cast, and nothing else.
"""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

# Triton decides when it is imported; its own functions tell what it decided. Its interpreter is not asked: importing
# that needs numpy, which neither PyTorch nor Triton brings.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
_INTERPRETED = tl.constexpr(INTERPRETED)

if INTERPRETED:
    # Gluon takes names of Triton's language as they are when it is imported: not within a launch of the interpreter,
    # which replaces them until it is done.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton.experimental.gluon.language")


def device_function(function: Callable[..., Any]) -> Any:
    """`triton.jit` for what kernels call.

    The interpreter would prepare Triton's whole language again for every call of it, which takes more time than the
    call; the kernel's launch has done that already.
    """
    compiled = triton.jit(function)
    return compiled.rewrite() if INTERPRETED else compiled


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


@device_function
def dot(a, b, acc=None, PRECISION: tl.constexpr = "ieee"):
    """a @ b + acc in float32; `PRECISION` is that of float32 operands, "ieee" or "tf32"."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@device_function
def narrow(x, dtype: tl.constexpr):
    """Round float32 `x` to `dtype`, to the nearest and, on a tie, to the even one."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
