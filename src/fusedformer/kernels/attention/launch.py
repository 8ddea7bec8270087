"""Launchers of the attention kernels: ops attention_fwd and attention_bwd for CUDA tensors, or CPU ones interpreted."""

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fusedformer.kernels import replay
from fusedformer.kernels.attention import tuning
from fusedformer.kernels.attention.bwd_bias_kernel import attention_bwd_bias_kernel
from fusedformer.kernels.attention.bwd_dkdv_kernel import attention_bwd_dkdv_kernel
from fusedformer.kernels.attention.bwd_dq_kernel import attention_bwd_dq_kernel
from fusedformer.kernels.attention.bwd_kernel import attention_bwd_rows_kernel
from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.attention.fwd_kernel import attention_fwd_kernel
from fusedformer.kernels.attention.hopper import dispatch
from fusedformer.kernels.attention.packing_kernel import pack
from fusedformer.kernels.attention.scores import Scoring
from fusedformer.kernels.attention.tiles import Packing
from fusedformer.kernels.triton_compat import INTERPRETED

LOG2_E = math.log2(math.e)


def environment(*_: Any) -> tuple[str, str]:
    """What the launches depend on beside the arguments."""
    return precision(), dispatch.preference()


@replay.replayed(environment)
def attention_fwd(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """The op attention_fwd by its kernel."""
    problem = Problem(q, k, v, Extras(*settings), arch_of(q))
    out = problem.allocate(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    lse = problem.allocate(q.shape[0], q.shape[2], q.shape[1])
    problem.launch("fwd", attention_fwd_kernel, problem.extras.sinks, out, lse)
    return out, lse


@replay.replayed(environment)
def attention_bwd(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, wanted: list[bool],
    q: Tensor, k: Tensor, v: Tensor, *settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The op attention_bwd by its kernels."""
    problem = Problem(q, k, v, Extras(*settings), arch_of(q))
    _check_rows(q, v, dout, dlse, out, lse)
    dq, dk, dv, dbias, dslopes, dsinks = (q.new_empty(0) for _ in range(6))
    wants_dq, wants_dkdv, wants_dbias, wants_dslopes, wants_dsinks = wanted
    delta, shift = query_rows(problem, dout, dlse, out, lse)
    sums = None
    if wants_dkdv:
        dk, dv = problem.allocate(*k.shape, dtype=k.dtype), problem.allocate(*v.shape, dtype=v.dtype)
        if wants_dq and not wants_dslopes and problem.hopper_refusal("fused", dout) is None:
            sums = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        problem.launch("dkdv", attention_bwd_dkdv_kernel, dout, delta, shift, dk, dv, sums=sums)
    if wants_dq or wants_dslopes:
        dq = problem.allocate(*q.shape, dtype=q.dtype)
        slope_rows = problem.allocate(*lse.shape) if wants_dslopes else None
        problem.launch("dq", attention_bwd_dq_kernel, dout, delta, shift, dq, slope_rows, sums=sums)
        if slope_rows is not None:
            dslopes = problem.extras.sum_rows(slope_rows)
        if not wants_dq:
            dq = q.new_empty(0)
    if wants_dbias:
        dbias = _bias(problem, dout, delta, shift)
    if wants_dsinks:
        dsinks = problem.extras.sinks_gradient(lse, delta)
    return dq, dk, dv, dbias, dslopes, dsinks


class Problem:
    """One call: its tensors, and what all of its kernels are told."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, extras: Extras, arch: int | None) -> None:
        self.q, self.k, self.v, self.extras = q, k, v, extras
        self.left, self.right = extras.window(q, k)
        self.arch = arch
        self._packed: dict[tuple[bool, int], Tensor] = {}
        hides = any(x is not None for x in (self.left, self.right, extras.mask, extras.bias))
        # Each launch: whether it is exact, and a repair. Where something is hidden and could be NaN, one follows.
        self.launches = [(False, False), (True, True)] if hides else [(False, False)]
        if tuning.is_elementwise("fwd", self.arch, q.dtype, self.head_dim):
            self.launches = [(True, False)]

    @property
    def head_dim(self) -> int:
        return max(self.q.shape[3], self.v.shape[3])

    @functools.cached_property
    def scoring(self) -> Scoring:
        """What the kernels do to raw scores."""
        extras = self.extras
        is_plain = extras.is_scaled_only and extras.scale > 0
        if is_plain and extras.mask is None and extras.seed is None:
            return Scoring(extras.scale, extras.scale * LOG2_E)
        pairs = (self.sequences, self.q.shape[2], self.q.shape[1], self.k.shape[1])
        mask = None if extras.mask is None else extras.mask.view(torch.uint8)
        settings: dict[str, Any] = {}
        given = (("mask", mask, pairs), ("bias", extras.bias, pairs), ("slopes", extras.slopes, pairs[:2]))
        for name, tensor, shape in given:
            if tensor is not None:
                tensor = tensor.expand(shape)
                settings |= {f"{name}_ptr": tensor, f"{name}_strides": tensor.stride()}
        if extras.softcap:
            settings["softcap_log2"] = extras.softcap * LOG2_E
        if extras.seed is not None:
            settings |= {"seed_ptr": extras.seed, "dropout_p": extras.dropout_p}
        return Scoring(extras.scale, extras.scale * LOG2_E, **settings, is_plain=tl.constexpr(is_plain))

    @property
    def sequences(self) -> int:
        starts = self.extras.starts_q
        return self.q.shape[0] if starts is None else starts.numel() - 1

    def allocate(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An output; 0 in the rows after the last packed sequence, which are nobody's."""
        create = torch.zeros if self.extras.is_packed else torch.empty
        return create(shape, dtype=dtype, device=self.q.device)

    @functools.cached_property
    def is_busy(self) -> bool:
        """Whether registers are few: scores take more than scaling, or rows cannot be read 16 bytes at a time."""
        extras = self.extras
        if not extras.is_scaled_only or extras.mask is not None or extras.seed is not None:
            return True
        return not all(map(_is_aligned, (self.q, self.k, self.v)))

    def tile(self, name: str, exact: bool = False) -> tuning.Tile:
        """The tile of a kernel."""
        packed = self.extras.is_packed
        return tuning.tile(name, self.arch, self.q.dtype, self.head_dim, self.is_busy, exact, packed)

    def launch(self, name: str, kernel: Any, *tensors: Tensor | None, sums: Tensor | None = None) -> None:
        """Launch a kernel over the tiles of keys if it is "dkdv", of queries otherwise; `tensors`: as it lists them.

        `sums`: (B, Sq, H, D) float32, 0 before "dkdv", which on Hopper adds dQ to it, for "dq" to take from there.
        """
        on_hopper = sums is not None or self.hopper_refusal(name, *tensors) is None
        starts, side, block = self._tiled(name, on_hopper)
        if starts is None:
            packing, tiles = Packing(), triton.cdiv(side.shape[1], block) * side.shape[0]
        else:
            slots = self.slots(starts, side.shape[1], block)
            packing, tiles = Packing(self.extras.starts_q, self.extras.starts_k, slots, len(slots)), len(slots)
        programs = tiles * side.shape[2]
        finite = torch.empty(programs, dtype=torch.int8, device=side.device) if len(self.launches) > 1 else None
        strides = [self._strides(x) for x in (self.q, self.k, self.v, *tensors) if x is not None and x.dim() == 4]
        lse_strides = (0 if self.extras.is_packed else self.q.shape[2] * self.q.shape[1], self.q.shape[1])
        for exact, repair in self.launches:
            if on_hopper and not repair:
                self._launch_on_hopper(name, finite, sums, *tensors)
                continue
            run(
                kernel, programs, self.tile(name, exact), self.values(exact, repair) | {"TILE": block},
                self.q, self.k, self.v, self.scoring, packing, *tensors, finite, *self.sizes, *strides, lse_strides,
            )  # fmt: skip

    def hopper_refusal(self, name: str, *tensors: Tensor | None) -> str | None:
        """Why the Hopper tier does not launch this kernel; None where it does. `tensors`: as the kernel lists them."""
        rows = [x for x in tensors if x is not None and x.dim() == 4]
        return dispatch.refusal(name, self, *rows)

    def _tiled(self, name: str, on_hopper: bool) -> tuple[Tensor | None, Tensor, int]:
        """What the tiles of a kernel divide: where sequences start, if packed; keys or queries; and how many a tile."""
        of_keys = name == "dkdv"
        block = dispatch.PROGRAM_ROWS if self.extras.is_packed else dispatch.ROWS
        if not on_hopper:
            tile = self.tile(name, exact=self.launches[0][0])
            block = tile.block_n if of_keys else tile.block_m
        return (self.extras.starts_k, self.k, block) if of_keys else (self.extras.starts_q, self.q, block)

    def _launch_on_hopper(self, name: str, finite: Tensor | None, sums: Tensor | None, *tensors: Tensor | None) -> None:
        from fusedformer.kernels.attention.hopper import launch  # not every Triton has what it needs

        if sums is None:
            launch.launch(name, self, finite, *tensors)
        elif name == "dkdv":
            launch.launch("fused", self, finite, *tensors, sums)
        else:
            launch.finish_fused(self, finite, sums, tensors[3])

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """heads, group, seqlen_q, seqlen_k, left, right."""
        group = self.q.shape[2] // max(1, self.k.shape[2])
        return self.q.shape[2], group, self.q.shape[1], self.k.shape[1], self.left, self.right

    def values(self, exact: bool = False, repair: bool = False) -> dict[str, Any]:
        """The compile-time arguments that do not depend on the tile."""
        return {
            "BOTTOM_RIGHT": self.extras.bottom_right, "EXACT": exact, "REPAIR": repair, "PRECISION": precision(),
            "HEAD_DIM": self.q.shape[3], "HEAD_DIM_V": self.v.shape[3],
        }  # fmt: skip

    def slots(self, starts: Tensor, length: int, block: int) -> Tensor:
        """`pack`, once for all launches that need the same."""
        key = (starts is self.extras.starts_q, block)
        if key not in self._packed:
            self._packed[key] = pack(starts, length, block)
        return self._packed[key]

    def _strides(self, x: Tensor) -> tuple[int, ...]:
        """Packed sequences are no batch: the kernel finds their first rows itself."""
        return (0, *x.stride()[1:]) if self.extras.is_packed else x.stride()


def _is_aligned(x: Tensor) -> bool:
    """Whether Triton takes the strides for multiples of 16, and the last dimension for dense."""
    *outer, last = x.stride()
    return last == 1 and not any(stride % 16 for stride in outer)


def run(kernel: Any, programs: int, tile: tuning.Tile, values: dict[str, Any], *args: Any) -> None:
    """Start `programs` programs; all of them on the first grid axis, the only one that takes more than 65,535."""
    if programs == 0:
        return
    with torch.cuda.device_of(args[0]):
        replay.launch(kernel, programs, args, **_options(kernel, tile, tuple(values.items())))


@functools.cache
def _options(kernel: Any, tile: tuning.Tile, values: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """What a launch is told by name."""
    return constexprs(kernel, dict(values), tile) | {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def constexprs(kernel: Any, values: dict[str, Any], tile: tuning.Tile) -> dict[str, Any]:
    """Of `values`, and of what follows from them and the tile, the compile-time arguments that `kernel` takes."""
    values = values | {
        "BLOCK_D": max(16, triton.next_power_of_2(values["HEAD_DIM"])),
        "BLOCK_DV": max(16, triton.next_power_of_2(values["HEAD_DIM_V"])),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
    }
    return {name: value for name, value in values.items() if name in kernel.arg_names}


def precision() -> str:
    """That of float32 operands: TF32 only where PyTorch was told to multiply matrices so."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def query_rows(problem: Problem, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """rowsum(dout * out) - dlse, and lse in base 2, for each query; packed ones are rows like any other."""
    delta, shift = torch.empty((2, *lse.shape), dtype=torch.float32, device=lse.device)
    tile = problem.tile("rows")
    batch, seqlen_q, heads, _ = out.shape
    run(
        attention_bwd_rows_kernel, triton.cdiv(seqlen_q, tile.block_m) * batch * heads, tile, problem.values(),
        dout, out, lse.contiguous(), None if dlse is None else dlse.contiguous(), delta, shift, heads, seqlen_q,
        dout.stride(), out.stride(),
    )  # fmt: skip
    return delta, shift


def _bias(problem: Problem, dout: Tensor, delta: Tensor, shift: Tensor) -> Tensor:
    """The gradient of the bias, in its own shape and dtype."""
    bias = problem.extras.bias
    assert bias is not None  # it has a gradient
    dbias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
    exact = tuning.is_elementwise("dbias", problem.arch, problem.q.dtype, problem.head_dim)
    tile = problem.tile("dbias", exact)
    batch, seqlen_q, heads, _ = problem.q.shape
    full = (batch, heads, triton.cdiv(seqlen_q, tile.block_m), triton.cdiv(problem.k.shape[1], tile.block_n))
    own = [size > 1 for size in bias.shape]
    run(
        attention_bwd_bias_kernel, math.prod(tiles for tiles, is_own in zip(full, own) if is_own), tile,
        problem.values(exact) | dict(zip(("PER_BATCH", "PER_HEAD", "PER_QUERY", "PER_KEY"), own)),
        problem.q, problem.k, problem.v, problem.scoring, dout, delta, shift, dbias, batch, *problem.sizes,
        problem.q.stride(), problem.k.stride(), problem.v.stride(), dout.stride(),
    )  # fmt: skip
    return dbias.to(bias.dtype)


def _check_rows(q: Tensor, v: Tensor, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor) -> None:
    """The kernels read these by the sizes of q and v, whoever calls the op."""
    rows = (*q.shape[:-1], v.shape[-1])
    heads_first = (q.shape[0], q.shape[2], q.shape[1])
    for name, tensor, shape in (
        ("dout", dout, rows), ("out", out, rows), ("dlse", dlse, heads_first), ("lse", lse, heads_first)
    ):  # fmt: skip
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"attention_bwd: {name} has shape {tuple(tensor.shape)}, expected {shape}")


def arch_of(q: Tensor) -> int | None:
    """Compute capability, 90 for 9.0; None where the kernels are interpreted.

    Raises:
        RuntimeError: CPU tensors, and Triton compiles.
    """
    if INTERPRETED:
        return None
    if not q.is_cuda:
        raise RuntimeError(
            "attention: emulation was asked for, but Triton was imported without its interpreter: "
            "set FUSEDFORMER_EMULATE=1 or TRITON_INTERPRET=1 before the first import of triton"
        )
    major, minor = torch.cuda.get_device_capability(q.device)
    return 10 * major + minor
