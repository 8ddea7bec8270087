"""Gated linear units: y = gelu(gate) * up and y = silu(gate) * up, silu(x) = x sigmoid(x).

M rows (all leading dimensions), N features of the output.
Memory traffic: forward reads gate and up and writes y, 3 M N elements; backward reads dy, gate and up and writes both
gradients, 5 M N. Halves of one tensor are read where they lie, and the gradient is written so.
Device code: csrc/glu.cu. Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from fusedformer.kernels import aten, eager, library, native, reference
from fusedformer.kernels.gelu import check_approximate


def geglu(x: Tensor, up: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """gelu(gate) * up, of two tensors or of the halves of one.

        geglu(gate, up)[..., j] = gelu(gate[..., j]) * up[..., j]

                            0        N - 1   N        2N - 1
        geglu(x)       x = [     gate      |      up        ]
                       y = [ gelu(gate)*up ]

    The activated half is the first, as in the paper and in xFormers, Liger-Kernel and vLLM; where it is the second, as
    in diffusers' GEGLU, write `up, gate = x.chunk(2, -1)` and `geglu(gate, up)`, which copies nothing either.

    Args:
        x: (..., 2N), or the gate, (..., N), where `up` is given; float32, float16 or bfloat16 (on the CPU float64
            too), any strides.
        up: of the gate's shape and dtype.
        approximate: "none" or "tanh", as of `gelu`.

    Returns:
        Contiguous tensor (..., N) of x's dtype, computed in float32 whatever the input.

    Raises:
        ValueError: an odd last dimension without `up`; shapes, dtypes or devices that do not fit; `approximate`.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6.
    """
    check_approximate("geglu", approximate)
    return _glu("geglu", x, up, reference.gelu_number(approximate == "tanh"))


def swiglu(x: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up, of two tensors or of the halves of one.

        swiglu(gate, up)[..., j] = silu(gate[..., j]) * up[..., j]

                            0        N - 1   N        2N - 1
        swiglu(x)      x = [     gate      |      up        ]
                       y = [ silu(gate)*up ]

    Args, returns and errors are those of `geglu`.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, equation 6.
    """
    return _glu("swiglu", x, up, reference.SILU)


def _glu(function: str, x: Tensor, up: Tensor | None, activation: int) -> Tensor:
    if not is_compiling() and (y := eager.glu(x, up, activation)) is not None:
        return y
    if (y := glu_fwd.natively(x, up, activation)) is not None:
        return y
    if (y := glu_fwd.by_kernel(x, up, activation)) is not None:
        return y
    if not _are_usual(x, up):
        _check(function, x, up)
    return glu_fwd(x, up, activation)


def _are_usual(x: Tensor, up: Tensor | None) -> bool:
    if not library.are_alike(x, up) or x.dim() == 0:
        return False
    return x.size(-1) % 2 == 0 if up is None else up.size() == x.size()


def _check(function: str, x: Tensor, up: Tensor | None) -> None:
    library.check_tensor(function, "x", x)
    if x.dim() == 0:
        raise ValueError(f"{function}: x has no dimension to split: shape ()")
    if up is None:
        if x.shape[-1] % 2:
            raise ValueError(f"{function}: x has {x.shape[-1]} features, expected an even number: gate and up")
    else:
        library.check_tensor(function, "up", up)
        if up.shape != x.shape or up.dtype != x.dtype:
            gate, other = (f"{tuple(t.shape)} {library.short(t.dtype)}" for t in (x, up))
            raise ValueError(f"{function}: the gate is {gate}, up is {other}: expected the same shape and dtype")
        library.check_device(function, x=x, up=up)
    library.check_dtype(function, x=x)


def _fwd_fake(x: Tensor, up: Tensor | None, activation: int) -> Tensor:
    return x.new_empty(x.shape if up is not None else (*x.shape[:-1], x.shape[-1] // 2))


def _bwd_fake(dy: Tensor, x: Tensor, up: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if up is None else x.shape)


def _save_fwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, up, ctx.activation = inputs
    ctx.save_for_backward(x, up)


def _fwd_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, up = ctx.saved_tensors
    dx, dup = glu_bwd(dy, x, up, ctx.activation)
    return dx, None if up is None else dup, None


def _save_bwd(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, x, up, ctx.activation = inputs
    ctx.save_for_backward(dy, x, up)


def _bwd_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, up = ctx.saved_tensors

    def backward(dy: Tensor, x: Tensor, *up: Tensor) -> tuple[Tensor, Tensor]:
        return reference.glu_bwd(dy, x, up[0] if up else None, ctx.activation)

    d_dy, d_x, *d_up = library.vjp(backward, (dy, x) if up is None else (dy, x, up), grads)
    return d_dy, d_x, d_up[0] if d_up else None, None


glu_fwd = library.define(
    "glu_fwd(Tensor x, Tensor? up, int activation) -> Tensor",
    fallback=aten.glu_fwd,
    fake=_fwd_fake,
    native=native.glu_fwd,
)
glu_bwd = library.define(
    "glu_bwd(Tensor dy, Tensor x, Tensor? up, int activation) -> (Tensor, Tensor)",
    fallback=aten.glu_bwd,
    fake=_bwd_fake,
)
library.differentiate("glu_fwd", _fwd_gradient, _save_fwd, reference.glu_fwd, row_wise=True)
library.differentiate("glu_bwd", _bwd_gradient, _save_bwd, reference.glu_bwd)
