"""What the simulator says of a launch of a Hopper attention kernel, which may have a planted bug: planted_gluon.py.

Kernels are launched as they stand, without the repair of hidden NaN that attention adds.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from attention_fp8_oracle import attention_by_tiles
from planted_gluon import BWD, DQ, FP8, FWD, PERSISTENT, WIDE, Case
from torch import Tensor

from fusedformer import simulator
from fusedformer.kernels.attention.fp8 import reference as fp8
from fusedformer.kernels.attention.hopper.launch import grouped_rows_of, numbers_of, rows_of, span_of
from fusedformer.kernels.attention.hopper.spreading_kernel import spread
from fusedformer.kernels.attention.packing_kernel import pack

LOG2_E = math.log2(math.e)
# Of the error, relative above 1: what float16 costs these shapes, and float32, several times over.
BUDGET, LSE_BUDGET = 2e-3, 1e-5
# What bfloat16 costs beside weights that are rounded to e4m3 in the same tiles; a weight may be rounded the other way.
FP8_BUDGET = 6e-3
REGISTERS: dict[str, Any] = {"CONSUMER_REGISTERS": 240, "PRODUCER_REGISTERS": 24}


@dataclass(frozen=True)
class Problem:
    """What a case computes on, and what must come out, in float64."""

    q: Tensor  # (B, Sq, H, D)
    k: Tensor  # (B, Sk, Hkv, D)
    v: Tensor  # (B, Sk, Hkv, Dv)
    dout: Tensor  # (B, Sq, H, Dv)
    sinks: Tensor | None  # (H,)
    delta: Tensor  # (B, H, Sq) float32
    shift: Tensor  # (B, H, Sq) float32
    expected: dict[str, Tensor]


@functools.cache
def problem_of(case: Case) -> Problem:
    """The numbers of a case; beside the rows of those that have tails, memory is full of NaN."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator).to(case.dtype)
        if not any(case.row.tails):
            return x
        beside = x.new_full((*shape[:-1], 32), math.nan)
        return torch.cat([x, beside], -1)[..., : shape[-1]]

    q = randn(case.batch, case.seqlen_q, case.heads, case.head_dim)
    if case.has_flags and case.side == 0 and not case.packed:
        q[:, -1] = math.nan  # of the last tile alone
    k = randn(case.batch, case.seqlen_k, case.heads // case.group, case.head_dim)
    v = randn(case.batch, case.seqlen_k, case.heads // case.group, case.head_dim_v)
    dout = randn(case.batch, case.seqlen_q, case.heads, case.head_dim_v)
    if case.packed:
        for x, side in ((q, 0), (k, 1), (v, 1), (dout, 0)):
            x[:, case.sequences[1][side]] = math.nan
            x[:, case.sequences[-1][side].stop :] = math.nan
    sinks = torch.randn(case.heads, generator=generator) if case.has_sinks else None
    expected = _expected(case, (q, k, v), dout, sinks)
    delta = (expected["out"] * dout).sum(-1).transpose(1, 2).float().contiguous()
    shift = torch.where(expected["lse"].isinf(), math.inf, expected["lse"] * LOG2_E).float().contiguous()
    if case.has_flags and case.side == 1 and not case.packed:
        v[:, -1] = math.nan  # delta is of another v: dK of this key alone
        expected["dk"][:, -1] = math.nan
    return Problem(q, k, v, dout, sinks, delta, shift, expected)


def _expected(
    case: Case, qkv: tuple[Tensor, Tensor, Tensor], dout: Tensor, sinks: Tensor | None
) -> dict[str, Tensor]:  # fmt: skip
    """What must come out; in rows that belong to no sequence NaN, as before the launch, and 0 where results add up."""
    leaves = tuple(x.double().requires_grad_() for x in qkv)
    expected = {"out": dout, "lse": dout[..., 0].transpose(1, 2), "dq": qkv[0], "dk": qkv[1], "dv": qkv[2]}
    expected = {name: torch.full(x.shape, math.nan, dtype=torch.float64) for name, x in expected.items()}
    if case.is_fused:
        expected["dq"].zero_()
    for rows, keys in case.sequences:
        own = [leaves[0][:, rows], leaves[1][:, keys], leaves[2][:, keys]]
        with torch.enable_grad():
            out, lse = reference(case, (own[0], own[1], own[2]), sinks)
            gradients = torch.autograd.grad(out, own, dout[:, rows].double())
        expected["out"][:, rows], expected["lse"][..., rows] = out.detach(), lse.detach()
        for name, x, place in zip(("dq", "dk", "dv"), gradients, (rows, keys, keys)):
            expected[name][:, place] = x
    return expected


def reference(case: Case, qkv: tuple[Tensor, Tensor, Tensor], sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """out (B, Sq, H, Dv) and lse (B, H, Sq); a query that sees no key gives 0 and -inf."""
    q = qkv[0].transpose(1, 2)
    k, v = (x.transpose(1, 2).repeat_interleave(case.group, 1) for x in qkv[1:])
    scores = q @ k.transpose(2, 3) * case.head_dim**-0.5
    if case.softcap is not None:
        scores = case.softcap * (scores / case.softcap).tanh()
    seqlen_q, seqlen_k = scores.shape[2:]
    distance = torch.arange(seqlen_k) - torch.arange(seqlen_q)[:, None] - (seqlen_k - seqlen_q)
    far = seqlen_q + seqlen_k
    is_visible = (distance >= -(far if case.left is None else case.left)) & (
        distance <= (far if case.right is None else case.right)
    )
    if case.has_slopes:
        scores = scores - slopes_of(case).double().view(1, -1, 1, 1) * distance.abs()
    scores = scores.masked_fill(~is_visible, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], 3)
    sees_any = (scores != -math.inf).any(-1, keepdim=True)
    weights = scores.masked_fill(~sees_any, 0).softmax(-1).where(sees_any, 0)
    return (weights[..., :seqlen_k] @ v).transpose(1, 2), scores.logsumexp(-1)


def slopes_of(case: Case) -> Tensor:
    """(H,): ALiBi's, of which the last is negative."""
    return torch.linspace(0.3, -0.02, case.heads)


def run_fwd(kernel: Any, case: Case, **options: Any) -> dict[str, Tensor]:
    """Launch the forward kernel."""
    problem = problem_of(case)
    q, k, v = problem.q, problem.k, problem.v
    out = torch.full((*q.shape[:3], case.head_dim_v), math.nan, dtype=case.dtype)
    results = {"out": out, "lse": torch.full((q.shape[0], case.heads, case.seqlen_q), math.nan)}
    flags = _flags(case, case.heads, case.seqlen_q)
    kv_heads, heads = case.heads // case.group, case.heads_of_tile
    programs = case.batch * _programs(case, heads) * (kv_heads if heads > 1 else case.heads)
    own: dict[str, Any] = {"CONSUMERS": case.consumers, "HEADS": heads}
    if case.kernel == PERSISTENT:
        programs, own = case.programs, {"planes": case.batch * case.heads, "section": case.section}

    width, width_v = case.row.tiles

    def describe(x: Tensor, columns: int) -> Any:
        return case.describe(x, 64, columns) if heads == 1 else grouped_rows_of(x, kv_heads, heads, columns)

    simulator.run(
        kernel, (programs,), describe(q, width), case.describe(k, case.block, width),
        case.describe(v, case.block, width_v), problem.sinks, describe(out, width_v),
        results["lse"], flags, *_sizes(case),
        None if case.softcap is None else case.softcap * LOG2_E, *_slopes(case),
        STAGES=case.stages, PING_PONG=True, **own, **REGISTERS, **_tails(kernel, case), **_packing(case), **options,
    )  # fmt: skip
    return results | _named(flags)


@functools.cache
def fp8_problem_of(case: Case) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
    """q, k and v in float8, their descales, and what must come out, with weights of a tile rounded to e4m3."""
    generator = torch.Generator().manual_seed(0)
    kv_heads = case.heads // case.group
    shapes = {
        "q": (case.seqlen_q, case.heads, case.head_dim),
        "k": (case.seqlen_k, kv_heads, case.head_dim),
        "v": (case.seqlen_k, kv_heads, case.head_dim_v),
    }
    tensors = {name: torch.randn((1, *shape), generator=generator).to(fp8.DTYPE) for name, shape in shapes.items()}
    descales = [0.7 + torch.rand((1, x.shape[2]), generator=generator) for x in tensors.values()]
    wide = (fp8.dequantize(x, descale, torch.float64) for x, descale in zip(tensors.values(), descales))
    out, lse = attention_by_tiles(*wide, window=(case.left, case.right), rounded=True, block=case.block)
    return tensors, descales, {"out": out, "lse": lse}


def run_fp8(kernel: Any, case: Case, **options: Any) -> dict[str, Tensor]:
    """Launch the forward kernel of float8."""
    tensors, descales, _ = fp8_problem_of(case)
    q, k, v = tensors.values()
    tiles = -(-case.seqlen_k // case.block)
    padded = torch.zeros((1, tiles * case.block, v.shape[2], case.head_dim_v)).to(v.dtype)
    padded[:, : case.seqlen_k] = v
    values = padded.view(1, tiles, case.block // 16, 2, 4, 2, v.shape[2], case.head_dim_v).permute(
        0, 1, 7, 2, 4, 3, 5, 6
    )
    values = values.reshape(1, tiles * case.head_dim_v, case.block, v.shape[2]).transpose(2, 3).contiguous()
    out = torch.full((*q.shape[:3], case.head_dim_v), math.nan, dtype=torch.bfloat16)
    results = {"out": out, "lse": torch.full((q.shape[0], case.heads, case.seqlen_q), math.nan)}
    simulator.run(
        kernel, (_programs(case) * case.heads,),
        rows_of(q, 64, case.head_dim), rows_of(k, case.block, case.head_dim),
        rows_of(values, case.head_dim_v, case.block), *descales,
        rows_of(out, 64, case.head_dim_v), results["lse"], *_sizes(case),
        STAGES=case.stages, PING_PONG=True, **REGISTERS, **options,
    )  # fmt: skip
    return results


def run_dq(kernel: Any, case: Case, **options: Any) -> dict[str, Tensor]:
    """Launch the kernel of dQ alone."""
    problem = problem_of(case)
    dq = torch.full_like(problem.q, math.nan)
    flags = _flags(case, case.heads, case.seqlen_q)
    width, width_v = case.row.tiles
    simulator.run(
        kernel, (_programs(case) * case.heads,),
        case.describe(problem.q, 64, width), case.describe(problem.k, case.block, width),
        case.describe(problem.v, case.block, width_v), case.describe(problem.dout, 64, width_v),
        problem.delta, problem.shift, case.describe(dq, 64, width), flags, *_sizes(case),
        STAGES=case.stages, **REGISTERS, **_tails(kernel, case), **_packing(case), **options,
    )  # fmt: skip
    return {"dq": dq} | _named(flags)


def run_bwd(kernel: Any, case: Case, **options: Any) -> dict[str, Tensor]:
    """Launch the kernel of dK and dV, and of dQ if the case is fused."""
    problem = problem_of(case)
    (width, width_v), block = case.row.tiles, case.block
    dk, dv = torch.full_like(problem.k, math.nan), torch.full_like(problem.v, math.nan)
    dq = torch.zeros(problem.q.shape) if case.is_fused else None
    flags = _flags(case, case.heads // case.group, case.seqlen_k)
    window = span_of(case.seqlen_k, case.seqlen_k - case.seqlen_q, case.left, case.right)
    delta, shift = problem.delta, problem.shift
    if case.packed:
        window = span_of(case.seqlen_q, 0, case.left, case.right)
        delta, shift = spread(delta, shift, case.starts(0), pack(case.starts(0), case.seqlen_q, block), block)
    dq_desc = [None if dq is None else case.describe(dq, block, width // 2)]
    simulator.run(
        kernel, (_programs(case) * case.heads // case.group,),
        case.describe(problem.q, block, width), case.describe(problem.k, case.program_rows, width),
        case.describe(problem.v, 64, width_v), case.describe(problem.dout, block, width_v),
        numbers_of(delta, block), numbers_of(shift, block), *([] if case.kernel == WIDE else dq_desc),
        case.describe(dk, 64, width), case.describe(dv, 64, width_v), flags,
        case.heads // case.group, case.group, case.seqlen_q, case.seqlen_k, *window, case.head_dim**-0.5 * LOG2_E,
        STAGES=case.stages, **REGISTERS, **_tails(kernel, case), **_packing(case), **options,
    )  # fmt: skip
    results = {"dk": dk, "dv": dv} | _named(flags)
    return results if dq is None else results | {"dq": dq * case.head_dim**-0.5}


RUN: dict[str, tuple[Callable[..., dict[str, Tensor]], str]] = {
    FWD: (run_fwd, "attention_hopper_fwd_kernel"),
    PERSISTENT: (run_fwd, "attention_hopper_fwd_persistent_kernel"),
    FP8: (run_fp8, "attention_hopper_fwd_fp8_kernel"),
    DQ: (run_dq, "attention_hopper_dq_kernel"),
    BWD: (run_bwd, "attention_hopper_bwd_kernel"),
    WIDE: (run_bwd, "attention_hopper_dkdv_wide_kernel"),
}


def _tails(kernel: Any, case: Case) -> dict[str, Any]:
    """What a kernel is told of columns that are no power of 2."""
    return {name: tail for name, tail in zip(("TAIL", "TAIL_V"), case.row.tails) if name in kernel.arg_names}


def _packing(case: Case) -> dict[str, Any]:
    """What a kernel is told of packed sequences."""
    if not case.packed:
        return {}
    slots = pack(case.starts(case.side), (case.seqlen_q, case.seqlen_k)[case.side], case.program_rows)
    return {"starts_q_ptr": case.starts(0), "starts_k_ptr": case.starts(1), "tiles_ptr": slots}


def _programs(case: Case, heads: int = 1) -> int:
    """For each head, or for each group where `heads` share a tile."""
    if packing := _packing(case):
        return len(packing["tiles_ptr"])
    return -(-(case.seqlen_q, case.seqlen_k)[case.side] * heads // case.program_rows)


def _sizes(case: Case) -> tuple[Any, ...]:
    """heads, group, seqlen_q, seqlen_k, diagonal, left, right, scale_log2."""
    diagonal = case.seqlen_k - case.seqlen_q
    lengths = (case.heads, case.group, case.seqlen_q, case.seqlen_k)
    return (*lengths, diagonal, case.left, case.right, case.head_dim**-0.5 * LOG2_E)


def _slopes(case: Case) -> tuple[Any, ...]:
    """ALiBi's slopes (B, H), the same in every batch, and their strides."""
    return (slopes_of(case).repeat(case.batch, 1), case.heads, 1) if case.has_slopes else (None, None, None)


def _flags(case: Case, heads: int, length: int) -> Tensor | None:
    if case.has_flags and case.packed:
        return torch.full((2, heads, _programs(case)), -1, dtype=torch.int8)
    return torch.full((case.batch, heads, -(-length // 64)), -1, dtype=torch.int8) if case.has_flags else None


def _named(flags: Tensor | None) -> dict[str, Tensor]:
    return {} if flags is None else {"flags": flags}


def error(name: str, x: Tensor, case: Case) -> float:
    """The largest difference to float64, relative above 1; infinite where only one of the two is finite."""
    if name == "flags":
        expected_places = expected_packed_flags(case) if case.packed else expected_flags(case, x.shape[2])
        return 0.0 if x.tolist() == expected_places else math.inf
    expected = (fp8_problem_of(case)[2] if case.kernel == FP8 else problem_of(case).expected)[name]
    if (expected.isfinite() != x.isfinite()).any():
        return math.inf
    difference = (x.double() - expected).abs() / expected.abs().clamp(min=1)
    budget = LSE_BUDGET if name == "lse" else FP8_BUDGET if case.kernel == FP8 else BUDGET
    return difference[expected.isfinite()].max().item() * (BUDGET / budget)


def expected_flags(case: Case, tiles: int) -> list[list[list[int]]]:
    """Which tiles of 64 rows are finite: all but that of the last row, which kernels of query tiles count first."""
    if case.side:
        return [[[int(tile < tiles - 1) for tile in range(tiles)]] * (case.heads // case.group)]
    return [[[int(tile > 0) for tile in range(tiles)]] * case.heads] * case.batch


def expected_packed_flags(case: Case) -> list[list[list[int]]]:
    """For both consumers: which slots are finite, all but those of the sequence of NaN; -1 for those of no sequence."""
    slots = _packing(case)["tiles_ptr"][:, 0].tolist()
    flags = [-1 if sequence < 0 else int(sequence != 1) for sequence in slots]
    return [[flags] * (case.heads // (case.group if case.side else 1))] * 2


def outcome(modules: dict[str, ModuleType], case: Case, seed: int, *, clocks: bool = True) -> str:
    """What is noticed of the kernels under a schedule: a hazard's text, a result with its error, or "right"."""
    run, name = RUN[case.kernel]
    try:
        results = run(getattr(modules[case.kernel], name), case, seed=seed, clocks=clocks)
    except simulator.Hazard as hazard:
        return f"{type(hazard).__name__}: {hazard}"
    errors = {name: error(name, x, case) for name, x in results.items()}
    worst = max(errors, key=lambda name: errors[name])
    return "right" if errors[worst] < BUDGET else f"{worst} is {errors[worst]:.1e} off"
