"""What differs between Triton's compiler and its interpreter, and between Triton 3.6 and 3.7.

The interpreter of both versions multiplies bfloat16 as raw bits in `tl.dot` and truncates when it rounds float32 to
bfloat16, so kernels call `dot` and `narrow` instead. Compiled, these are `tl.dot` and a cast, and nothing else.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# Triton decides when it is imported; its own functions tell what it decided. Its interpreter is not asked: importing
# that needs numpy, which neither PyTorch nor Triton brings.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
_INTERPRETED = tl.constexpr(INTERPRETED)


def device_function(function: Callable[..., Any]) -> Any:
    """`triton.jit` for what kernels call.

    The interpreter would prepare Triton's whole language again for every call of it, which takes more time than the
    call; the kernel's launch has done that already.
    """
    compiled = triton.jit(function)
    return compiled.rewrite() if INTERPRETED else compiled


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
