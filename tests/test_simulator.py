"""The Gluon simulator: each of its rules, by a kernel that keeps it and one that breaks it (simulated_kernels.py)."""

import math
import operator
import re
import threading
from random import Random

import pytest
import torch

pytest.importorskip("triton")
import simulated_kernels as kernels
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fusedformer import simulator
from fusedformer.kernels.attention.hopper import fwd_fp8_kernel
from fusedformer.simulator.functions import FUNCTIONS
from fusedformer.simulator.global_memory import Descriptor, Written
from fusedformer.simulator.scheduler import Scheduler
from fusedformer.simulator.values import Int32, Int64, Register

SEEDS = range(10)
GLUON_DTYPES = {torch.float16: gl.float16, torch.float32: gl.float32, torch.float8_e4m3fn: gl.float8e4nv}
BROKEN = {
    "load not waited for": r"a: read \(doubler\) without order after a write \(TMA load on ready.barriers\[0\]\)",
    "no order between partitions": r"without order after a (read|write)",
    "no fence after a store": r"asynchronous read \(multiplier's warpgroup_mma\) without a fence_async_shared after a "
    r"write \(doubler\)",
    "no fence after init": r"ready.barriers\[0\] is used by a TMA load without a fence_async_shared after its init",
    "barrier not initialised": r"is not an mbarrier that was initialised",
    "too many arrivals": r"more arrivals at ready.barriers\[1\] than its count of 1",
    "bytes that never come": r"with 0 arrivals and 16 bytes due",
    "product not waited for": "used before a warpgroup_mma_wait",
    "wait that does not cover": "where a tensor|used before a warpgroup_mma_wait",
    "operand overwritten": r"a: write \(TMA load .* without order after a read \(multiplier's warpgroup_mma",
    "product left under way": "ends without a wait for multiplier's warpgroup_mma number 2",
    "source overwritten": r"out_tile\[0\]: write \(multiplier\) without order after a read \(multiplier's TMA store",
    "store left under way": "ends without a wait for multiplier's TMA store number 2",
    "load left under way": "ends with a write .* to a not waited for",
    "element stored twice": "written that this launch wrote before",
    "read of what was written": "read that this launch wrote",
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tiles_of(x: torch.Tensor, *block: int) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for(list(block), GLUON_DTYPES[x.dtype])
    return TensorDescriptor.from_tensor(x, list(block), layout)


def product(break_: str = "", *, seed: int = 0, programs: int = 1, clocks: bool = True) -> float:
    """Run `product_kernel`; the largest error."""
    a, b, out = randn(64, 64), randn(64, 128, seed=1), torch.full((64, 128), math.nan)
    descriptors = tiles_of(a, 64, 64), tiles_of(b, 64, 128), tiles_of(out, 64, 64)
    simulator.run(kernels.product_kernel, (programs,), *descriptors, break_, seed=seed, clocks=clocks)
    return (out - 2 * a.float() @ b.float()).abs().nan_to_num(math.inf).max().item()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kernel_that_keeps_the_rules(seed: int) -> None:
    assert product(seed=seed) < 1e-3


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_reported_whatever_the_schedule(rule: str) -> None:
    threads = threading.active_count()
    for seed in SEEDS:
        with pytest.raises(simulator.Hazard, match=BROKEN[rule]):
            product(rule, seed=seed)
    assert threading.active_count() == threads  # the partitions that waited are gone


def test_programs_write_different_elements() -> None:
    with pytest.raises(simulator.Hazard, match="written that this launch wrote before"):
        product(programs=2)


@pytest.mark.parametrize("rule", ["no order between partitions", "operand overwritten", "source overwritten"])
def test_schedules_without_clocks_miss_what_clocks_find(rule: str) -> None:
    def is_noticed(seed: int, clocks: bool) -> bool:
        try:
            return product(rule, seed=seed, clocks=clocks) > 1e-3
        except simulator.Hazard:
            return True

    assert all(is_noticed(seed, True) for seed in SEEDS)
    assert not all(is_noticed(seed, False) for seed in SEEDS)


def test_data_under_way_is_nan() -> None:
    """Without clocks, reading a tile too early gives NaN on some schedule, not old data."""
    assert any(product("load not waited for", seed=seed, clocks=False) == math.inf for seed in range(30))


def test_a_deadlock_report_says_who_waits_for_what() -> None:
    with pytest.raises(simulator.Deadlock) as caught:
        product("bytes that never come", seed=3)
    head, waiting = str(caught.value).split("\n")
    assert head == "product_kernel, program (0,), seed 3: nothing can go on:"
    state = r"phase 0 of ready.barriers\[0\], in phase 0 with 0 arrivals and 16 bytes due"
    assert re.fullmatch(rf"  main, product_kernel line \d+, waits for {state}", waiting)

    with pytest.raises(simulator.Deadlock) as caught:
        simulator.run(kernels.exchange_kernel, (1,), torch.zeros(1, 256), "different barriers")
    _, *lines = str(caught.value).split("\n")
    for name, number, line in zip(("turn_writer", "turn_reader"), (5, 4), lines, strict=True):
        state = f"round 0 of named barrier {number}, in round 0 with 128 of 256 threads due"
        assert re.fullmatch(rf"  {name}, meet line \d+, waits for {state}", line)


def schedule_of(monkeypatch: pytest.MonkeyPatch, seed: int) -> list[str]:
    drawn: list[str] = []
    choose = Scheduler._choose

    def note(scheduler: Scheduler):  # type: ignore[no-untyped-def]
        chosen = choose(scheduler)
        drawn.append(chosen.name)
        return chosen

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_choose", note)
        simulator.run(kernels.exchange_kernel, (2,), torch.zeros(2, 256), "", seed=seed)
    return drawn


def test_the_seed_fixes_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = [schedule_of(monkeypatch, seed) for seed in (0, 0, 1, 2, 3)]
    assert schedules[0] == schedules[1]
    assert len(set(map(tuple, schedules))) > 2


def test_the_seed_of_the_emulated_world_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class NotingRandom(Random):
        def __init__(self, seed: int) -> None:
            seeds.append(seed)
            super().__init__(seed)

    monkeypatch.setattr("fusedformer.simulator.launch.Random", NotingRandom)
    monkeypatch.setenv("FUSEDFORMER_EMULATION_SEED", "17")
    simulator.run(kernels.misuse_kernel, (1,), torch.zeros(128), 0, "")
    simulator.run(kernels.misuse_kernel, (1,), torch.zeros(128), 0, "", seed=3)
    assert seeds == [17, 3]


def test_scalars() -> None:
    out = torch.arange(8, dtype=torch.int32) + 1000
    simulator.run(kernels.scalars_kernel, (1,), out, -7, 2)
    assert out.tolist() == [-2 // 2 * 1000 - 6, -100 - 3, 0, 1003, -301, 1006 + 1, 1006, -7]
    with pytest.raises(simulator.Hazard, match="bounds"):
        simulator.run(kernels.scalars_kernel, (1,), out[:5].clone(), -7, 2)
    with pytest.raises(simulator.Hazard, match=f"int32 overflow: {2**30 * 100}"):
        simulator.run(kernels.scalars_kernel, (1,), out, 2**30, 1)


@pytest.mark.parametrize(
    ("result", "expected", "dtype"),
    [
        (operator.floordiv(Register(torch.tensor([-7, 7], dtype=torch.int32)), 2), [-3, 3], torch.int32),
        (operator.mod(Register(torch.tensor([-7, 7], dtype=torch.int32)), 2), [-1, 1], torch.int32),
        (operator.add(Register(torch.tensor([1], dtype=torch.int32)), Int64(2**40)), [2**40 + 1], torch.int64),
        (
            operator.truediv(Register(torch.tensor([1.0]).half()), Register(torch.tensor([3.0]).half())),
            [1 / 3],
            torch.float32,
        ),
        (operator.mul(Register(torch.tensor([2.0]).half()), 3.0), [6.0], torch.float16),
        (operator.sub(1, Register(torch.tensor([2.0]))), [-1.0], torch.float32),
        (FUNCTIONS["where"](Register(torch.tensor([True, False])), 1, 0), [1, 0], torch.int32),
        (FUNCTIONS["maximum"](Register(torch.tensor([math.nan, 2.0])), 1.0), [1.0, 2.0], torch.float32),
        (FUNCTIONS["max"](Register(torch.tensor([[math.nan, 2.0]])), 1), [2.0], torch.float32),
        (FUNCTIONS["max"](Register(torch.tensor([[math.nan, math.nan]])), 1), [math.nan], torch.float32),
        (FUNCTIONS["min"](Register(torch.tensor([[3, 2]], dtype=torch.int32)), 1), [2], torch.int32),
    ],
)
def test_arithmetic_is_the_device_s(result: Register, expected: list[float], dtype: torch.dtype) -> None:
    torch.testing.assert_close(result.data, torch.tensor(expected, dtype=dtype), equal_nan=True)


def test_integers_of_two_widths() -> None:
    assert type(Int32(3) * Int64(2**40)) is Int64
    assert type(FUNCTIONS["maximum"](Int32(-3), 1)) is Int32
    assert type(FUNCTIONS["cdiv"](Int32(7), 2)) is Int32
    with pytest.raises(simulator.Hazard, match="int64 overflow"):
        Int64(2**62) * 2


def test_a_row_kernel_and_pointers() -> None:
    x, out = randn(3, 50), torch.full((3, 50), math.nan, dtype=torch.float16)
    simulator.run(kernels.softmax_kernel, (3,), x, out, math.log2(math.e), 50, WIDTH=64)
    torch.testing.assert_close(out, torch.softmax(x.float(), 1).half())


@pytest.mark.parametrize("seed", SEEDS)
def test_reductions_of_a_persistent_grid_and_tiles_of_rank_4(seed: int) -> None:
    x = randn(2, 2, 40, 24, seed=seed, dtype=torch.float32)
    out = torch.zeros(1, 1, 16, 24)
    tiles = 2 * 2 * 3  # the third of a head reaches over its end, and over the last column
    descriptors = tiles_of(x, 1, 1, 16, 32), tiles_of(out, 1, 1, 16, 32)
    simulator.run(kernels.sum_kernel, (3,), *descriptors, tiles, STAGES=2, seed=seed)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 8)).view(2, 2, 3, 16, 24)
    torch.testing.assert_close(out[0, 0], padded.sum((0, 1, 2)))


def test_a_phase_ends_after_the_waits_for_the_one_before() -> None:
    for seed in SEEDS:
        simulator.run(kernels.phases_kernel, (1,), "", seed=seed)
        with pytest.raises(
            simulator.Hazard, match=r"phase 1 .* which could miss it|waits for phase 0 of ready.barriers"
        ):
            simulator.run(kernels.phases_kernel, (1,), "phase overtaken", seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(seed: int) -> None:
    out = torch.zeros(256)
    simulator.run(kernels.exchange_kernel, (1,), out, "", seed=seed)
    assert out.tolist() == [1.0] * 128 + [2.0] * 128


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("no barrier", "without order after a|waits for round 0 of named barrier 4, in round 0 with 128 of 256"),
        ("different barriers", r"round 0 of named barrier 5, in round 0 with 128 of 256 threads due"),
        ("different counts", "named barrier 4 is used for (192 and for 256|256 and for 192) threads"),
        ("Triton's barrier", "named barrier 1: Triton uses those below 3"),
    ],
)
def test_a_named_barrier_that_is_not_kept(rule: str, message: str) -> None:
    for seed in SEEDS:
        with pytest.raises(simulator.Hazard, match=message):
            simulator.run(kernels.exchange_kernel, (1,), torch.zeros(1, 256), rule, seed=seed)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("ranks", ValueError, r"different ranks: \[\[64\], \[1, 64\]\]"),
        ("condition", TypeError, r"must be a scalar, this one is a tensor of shape \[64\]"),
        ("too much shared memory", simulator.Hazard, "262144 bytes of shared memory, of 232448"),
        ("index", simulator.Hazard, "index 7 of misuse_kernel|index 7 of shared memory, which has 2"),
        ("shape", TypeError, r"holds torch.float32 \[2, 64\], stored was torch.float32 \[64\]"),
        ("hint", simulator.Hazard, "7 is no multiple of 16"),
        ("bounds", simulator.Hazard, "out of the bounds"),
        ("overlapping store", simulator.Hazard, "twice"),
        ("unsupported", simulator.UnsupportedError, "associative_scan"),
        ("method", simulator.UnsupportedError, "_reinterpret of a SharedView"),
        ("assembly", simulator.UnsupportedError, "inline assembly 'vote.sync"),
    ],
)
def test_misuse(what: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulator.run(kernels.misuse_kernel, (1,), torch.zeros(128), 100 if what == "bounds" else 7, what)


def test_a_false_assumption() -> None:
    with pytest.raises(simulator.Hazard, match="does not hold"):
        simulator.run(kernels.misuse_kernel, (1,), torch.zeros(128), 1, "assumption")
    simulator.run(kernels.misuse_kernel, (1,), torch.zeros(128), 3, "assumption")


def test_shared_memory_begins_as_nan() -> None:
    x = torch.zeros(128)
    simulator.run(kernels.misuse_kernel, (1,), x, 0, "never written")
    assert x[64:].isnan().all()


def test_addresses_of_descriptors_wrap_at_64_bits() -> None:
    """Rows 3 to 6 of 10: the coordinate that bounds them counts to 2^30, and the first brings the address back."""
    x = torch.arange(1.0, 81.0).view(10, 8)
    shape, strides = [2**31 - 1, 2**31 - 1, 2**30, 8], [2**34 - 8, 8, 8, 1]
    descriptor = Descriptor(
        TensorDescriptor(x, shape, strides, [1, 1, 4, 8], gl.NVMMASharedLayout(32, 32, 4)), Written()
    )
    tile = torch.zeros(1, 1, 4, 8)
    for start, rows in ((-1, slice(2, 6)), (0, slice(3, 7)), (3, slice(6, 7)), (4, slice(7, 7))):
        piece, of_tile = descriptor.clip([2**30, 7, 2**30 - 4 + start, 0], tile)
        assert torch.equal(piece.data.reshape(-1, 8), x[rows])
        assert of_tile.shape == piece.data.shape
    with pytest.raises(simulator.Hazard, match="outside of a global tensor's memory, but inside of its descriptor"):
        descriptor.clip([2**30, 11, 2**30 - 4, 0], tile)


def test_registers_of_partitions() -> None:
    with pytest.raises(ValueError, match=r"registers \[20\] of partitions: setmaxnreg takes multiples of 8 from 24"):
        simulator.run(kernels.exchange_kernel, (1,), torch.zeros(1, 256), "registers")


def test_products_are_of_warpgroups() -> None:
    a, b, out = randn(64, 64), randn(64, 128), torch.zeros(64, 128)
    descriptors = tiles_of(a, 64, 64), tiles_of(b, 64, 128), tiles_of(out, 64, 64)
    with pytest.raises(simulator.Hazard, match="warpgroup_mma by multiplier, which has 2 warps"):
        simulator.run(kernels.product_kernel, (1,), *descriptors, "", num_warps=2)


def product_of_8_bits(is_dense: bool) -> float:
    a, b = (randn(64, 64, seed=seed).to(torch.float8_e4m3fn) for seed in range(2))
    out = torch.full((64, 64), math.nan)
    descriptors = (tiles_of(x, 64, 64) for x in (a, b, out))
    simulator.run(kernels.product_of_8_bits_kernel, (1,), *descriptors, is_dense)
    return (out - a.float() @ b.float().T).abs().nan_to_num(math.inf).max().item()


def test_products_of_8_bits_read_operands_that_are_dense_in_the_sum() -> None:
    assert product_of_8_bits(True) < 1e-3
    with pytest.raises(ValueError, match="the second is not dense in the dimension that is summed over"):
        product_of_8_bits(False)


def test_rounding_to_float8_ends_at_the_largest_number() -> None:
    x = torch.linspace(-1000, 1000, 256)
    x[3], x[5], x[8] = math.nan, math.inf, 2.0**-10
    words = torch.zeros(128, dtype=torch.int32)
    simulator.run(kernels.words_kernel, (1,), x, words, fwd_fp8_kernel.TO_E4M3.value)
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(words[:64].view(torch.int8), expected.view(torch.int8))
    assert torch.equal(words[64:], expected[::4].view(torch.int8).int())


def test_clusters_are_refused() -> None:
    with pytest.raises(simulator.UnsupportedError, match="clusters of 2 programs"):
        simulator.run(kernels.scalars_kernel, (1,), torch.zeros(8, dtype=torch.int32), 1, 1, num_ctas=2)
