"""Find the tiles of the attention kernels for the GPU at hand: `fusedformer tune`.

Nothing is tuned when a user calls attention; kernels/attention/tuning.py is a table, and this is the tool that measures
its rows. It compiles each candidate ahead of time, drops those that the static world would refuse, holds the results of
the others against those of the shipped tile, times them all in the same rounds, and prints the row of the best. The
candidates nearest to the shipped tile come first: they are what a small budget suffices for.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.timing import Clock, CudaClock, Interval, Plan, TooSlowError, measure, ratio
from fusedformer.benchmarks.report.console import Console
from fusedformer.benchmarks.report.tables import Table
from fusedformer.benchmarks.static.triton import CompilerPool
from fusedformer.kernels.attention import launch, tuning, variants
from fusedformer.kernels.attention.extras import Extras
from fusedformer.kernels.attention.inputs import Call
from fusedformer.kernels.attention.op import prepare
from fusedformer.kernels.attention.tuning import Tile

KERNELS = ("fwd", "dq", "dkdv")
SHIPPED = "shipped"
COMPILE_SHARE, CHECK_SHARE = 0.4, 0.5  # of the budget, and of what is left of it then; the rest is for times
NO_TIME = "the time for it was spent"
# What another order of summation may change at most, relative to the largest value: far less than a wrong tile does.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Task:
    """What to find a tile for: a kernel on (B, S, H, D) tensors, causal."""

    kernel: str
    dtype: torch.dtype
    head_dim: int
    seqlen: int
    batch: int
    heads: int

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"no kernel {self.kernel!r} to tune: choose from {', '.join(KERNELS)}")
        for name in ("head_dim", "seqlen", "batch", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class Trial:
    """A candidate: how many times faster than the shipped tile it is, or why it was not timed."""

    tile: Tile
    speedup: Interval | None = None
    refused: str = ""


class Gpu(NamedTuple):
    """What is tuned for: `arch` is its compute capability, 90 for 9.0."""

    device: torch.device
    arch: int
    name: str
    clock: Clock

    @classmethod
    def current(cls) -> "Gpu":
        """PyTorch's current one."""
        major, minor = torch.cuda.get_device_capability()
        return cls(torch.device("cuda"), 10 * major + minor, torch.cuda.get_device_name(), CudaClock())


def run(task: Task, gpu: Gpu, jobs: int, budget_s: float, console: Console) -> None:
    """Compile with so many jobs, check and time candidates within the budget; print them and the row of the best."""
    deadline = time.monotonic() + budget_s
    tiles = candidates(task, gpu.arch)
    console.step(f"compiling {len(tiles)} tiles")
    refused = refusals(task, tiles, gpu.arch, jobs, deadline - (1 - COMPILE_SHARE) * budget_s)
    fitting = [tile for tile in tiles if tile not in refused]
    trials = tune(task, fitting, gpu.device, gpu.clock, max(0.0, deadline - time.monotonic()), console.step)
    trials += [Trial(tile, refused=why) for tile, why in refused.items()]
    console.table(table(trials))
    if trials[0].speedup is not None:
        console.line(row(task, trials[0], gpu.arch, gpu.name))


def candidates(task: Task, arch: int) -> list[Tile]:
    """Every tile that is worth a compile for compute capability `arch`, the nearest to the shipped one first."""
    blocks = (32, 64, 128) if task.dtype.itemsize == 2 else (16, 32, 64)
    tiles = [Tile(*shape) for shape in itertools.product(blocks, blocks, (4, 8), (1, 2, 3))]
    shipped = tuning.tile(task.kernel, arch, task.dtype, task.head_dim, busy=False)

    def steps_away(tile: Tile) -> float:
        return sum(abs(math.log2(size / vars(shipped)[name])) for name, size in vars(tile).items())

    return sorted(tiles, key=steps_away)


def refusals(task: Task, tiles: Sequence[Tile], arch: int, jobs: int, deadline: float = math.inf) -> dict[Tile, str]:
    """Of `tiles` those that the static world refuses for compute capability `arch`, and why.

    What is not compiled by `deadline`, of `time.monotonic`, is refused too.
    """
    setting = variants.Setting(task.dtype, task.head_dim, ("causal",))

    def problems(tile: Tile) -> str:
        left = deadline - time.monotonic()
        if left <= 0:
            return NO_TIME
        row = pool.compile(variants.variant(task.kernel, arch, setting, tile), arch, left)
        return NO_TIME if row.skipped else "; ".join(row.problems)

    with CompilerPool(jobs) as pool, ThreadPoolExecutor(jobs) as threads:
        found = dict(zip(tiles, threads.map(problems, tiles)))
    return {tile: why for tile, why in found.items() if why}


def tune(
    task: Task,
    tiles: Sequence[Tile],
    device: torch.device,
    clock: Clock,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Trial]:
    """Time `tiles` against the shipped one on random tensors, the fastest first; wrong ones come last, untimed.

    Of `seconds`, what is not checked in a share of them is not timed.
    """
    inputs, deadline = _Inputs.random(task, device), time.monotonic() + seconds
    checked_by = deadline - (1 - CHECK_SHARE) * seconds
    expected = inputs.run(None)
    refused: dict[Tile, str] = {}
    for tile in tiles:
        progress(f"checking {tile}")
        if time.monotonic() > checked_by:
            refused[tile] = NO_TIME
        elif why := _difference(partial(inputs.run, tile, poisoned=True), expected, TOLERANCE[task.dtype]):
            refused[tile] = why
    right = [tile for tile in tiles if tile not in refused]
    progress(f"timing {len(right)} tiles")
    try:
        timed = _timed(inputs, right, clock, max(0.0, deadline - time.monotonic()))
    except TooSlowError as error:
        timed, refused = [], dict.fromkeys(right, str(error)) | refused
    return timed + [Trial(tile, refused=why) for tile, why in refused.items()]


def _timed(inputs: "_Inputs", tiles: Sequence[Tile], clock: Clock, seconds: float) -> list[Trial]:
    contenders: dict[str, Callable[[], object]] = {SHIPPED: partial(inputs.run, None)}
    contenders |= {str(tile): partial(inputs.run, tile) for tile in tiles}
    if len(contenders) == 1:
        return []
    samples = measure(contenders, clock, Plan(seconds=seconds, limit_seconds=seconds)).samples
    timed = [(ratio(samples[SHIPPED], samples[str(tile)]), tile) for tile in tiles]
    return [Trial(tile, speedup) for speedup, tile in sorted(timed, key=lambda one: -one[0].median)]


def table(trials: Sequence[Trial]) -> Table:
    """The candidates, as `tune` sorts them."""
    lines = []
    for trial in trials:
        tile, speedup = trial.tile, trial.speedup
        figure = f"{speedup.median:.3f} [{speedup.low:.3f}, {speedup.high:.3f}]" if speedup else ""
        sizes = (tile.block_m, tile.block_n, tile.num_warps, tile.num_stages)
        lines.append((*map(str, sizes), figure, trial.refused))
    header = ("queries", "keys", "warps", "stages", "times faster than shipped", "refused")
    return Table("Tiles", header, lines)


def row(task: Task, best: Trial, arch: int, machine: str) -> str:
    """The best tile as tuning.TABLE wants it, all but the tile for busy kernels, with its evidence."""
    assert best.speedup is not None  # a trial that was timed
    tile = f"Tile({best.tile.block_m}, {best.tile.block_n}, {best.tile.num_warps}, {best.tile.num_stages})"
    evidence = (
        f"{machine}, B {task.batch} S {task.seqlen} H {task.heads} D {task.head_dim} causal: "
        f"{best.speedup.median:.3f} [{best.speedup.low:.3f}, {best.speedup.high:.3f}] x the tile before"
    )
    return f'Row("{task.kernel}", ({arch},), {task.dtype.itemsize}, {task.head_dim}, {tile}, <busy>, "{evidence}")'


class _WithTile(launch.Problem):
    """A call whose kernels have another tile than the table's; repairs keep theirs."""

    tile_to_try: Tile | None = None

    def tile(self, name: str, exact: bool = False) -> Tile:
        return super().tile(name, exact) if exact or self.tile_to_try is None else self.tile_to_try


@dataclass(frozen=True)
class _Inputs:
    task: Task
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    rows: tuple[Tensor, Tensor]  # delta and shift: see bwd_kernel.py
    settings: tuple[Any, ...]

    @classmethod
    def random(cls, task: Task, device: torch.device) -> "_Inputs":
        generator = torch.Generator().manual_seed(0)
        shape = (task.batch, task.seqlen, task.heads, task.head_dim)
        q, k, v, dout = (torch.randn(shape, generator=generator).to(device, task.dtype) for _ in range(4))
        settings = prepare(Call("tune"), q, k, causal=True)
        out, lse = launch.attention_fwd(q, k, v, *settings)
        problem = launch.Problem(q, k, v, Extras(*settings), launch.arch_of(q))
        return cls(task, q, k, v, dout, launch.query_rows(problem, dout, None, out, lse), settings)

    def run(self, tile: Tile | None, *, poisoned: bool = False) -> list[Tensor]:
        """What the kernel writes, with this tile or the shipped one; NaN where it writes nothing, if `poisoned`."""
        problem = _WithTile(self.q, self.k, self.v, Extras(*self.settings), launch.arch_of(self.q))
        problem.tile_to_try = tile
        like = {"fwd": [self.q, self.rows[0]], "dq": [self.q], "dkdv": [self.k, self.v]}[self.task.kernel]
        outputs = [torch.full_like(x, math.nan) if poisoned else torch.empty_like(x) for x in like]
        if self.task.kernel == "fwd":
            problem.launch("fwd", launch.attention_fwd_kernel, None, *outputs)
        elif self.task.kernel == "dq":
            problem.launch("dq", launch.attention_bwd_dq_kernel, self.dout, *self.rows, *outputs, None)
        else:
            problem.launch("dkdv", launch.attention_bwd_dkdv_kernel, self.dout, *self.rows, *outputs)
        return outputs


def _difference(run: Callable[[], list[Tensor]], expected: Sequence[Tensor], tolerance: float) -> str:
    """Why these results are not the expected ones; empty if they are."""
    try:
        results = run()
    except Exception as error:  # out of shared memory, or whatever else a compiler says
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for got, want in zip(results, expected, strict=True):
        largest = float((got.float() - want.float()).abs().max() / want.float().abs().max())
        if not largest <= tolerance:
            return f"wrong: differs by {largest:.2g} of the largest value from what the shipped tile gives"
    return ""
