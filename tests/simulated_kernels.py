"""Small Gluon kernels for tests of the simulator: each keeps its rules, but for the one that BREAK names."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from fusedformer.kernels.attention.hopper.work import Work, count_of, place_of
from fusedformer.kernels.gluon_compat import async_atomic_add, async_load, async_store

LINE = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
TILE = gl.constexpr(gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0]))
PRODUCT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))


@gluon.jit
def make_barriers(n: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [n, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(n):
        mbarrier.init(barriers.index(i), count=1)
    return barriers


@gluon.jit
def doubler(a, ready, BREAK: gl.constexpr):
    """Doubles `a` in place."""
    doubled = a.load(TILE) * 2
    a.store(doubled)
    if BREAK != "no fence after a store":
        fence_async_shared()
    if BREAK != "no order between partitions":
        mbarrier.arrive(ready.index(1), count=1)
    if BREAK == "too many arrivals":
        mbarrier.arrive(ready.index(1), count=2)


@gluon.jit
def multiplier(a, b, a_desc, out_desc, ready, BREAK: gl.constexpr):
    """Stores a @ b, by halves of b's columns."""
    out_tile = gl.allocate_shared_memory(gl.float32, [2, 64, 64], out_desc.layout)
    zero = gl.zeros([64, 64], gl.float32, PRODUCT)
    if BREAK != "no order between partitions":
        mbarrier.wait(ready.index(1), 0)
    if BREAK == "barrier not initialised":
        mbarrier.wait(b.slice(0, 1).slice(0, 1, 1), 0)
    left = warpgroup_mma(a, b.slice(0, 64, 1), zero, use_acc=False, is_async=True)
    right = warpgroup_mma(a, b.slice(64, 64, 1), zero, use_acc=False, is_async=True)
    if BREAK == "product not waited for":
        left += 1
    left = warpgroup_mma_wait(2 if BREAK == "wait that does not cover" else 1, [left])
    if BREAK == "operand overwritten":
        mbarrier.expect(ready.index(0), a_desc.block_type.nbytes)
        async_load(a_desc, [0, 0], ready.index(0), a)
    out_tile.index(0).store(left)
    if BREAK != "product left under way":
        right = warpgroup_mma_wait(0, [right])
        out_tile.index(1).store(right)
        fence_async_shared()
        async_store(out_desc, [0, 64], out_tile.index(1))
    fence_async_shared()
    async_store(out_desc, [0, 0 if BREAK != "element stored twice" else 63], out_tile.index(0))
    if BREAK == "source overwritten":
        out_tile.index(0).store(zero)
    if BREAK != "store left under way":
        tma.store_wait(0)
    if BREAK == "load left under way":
        mbarrier.expect(ready.index(0), a_desc.block_type.nbytes)
        async_load(a_desc, [0, 0], ready.index(0), a)
    if BREAK == "read of what was written":
        mbarrier.expect(ready.index(0), out_desc.block_type.nbytes)
        async_load(out_desc, [0, 0], ready.index(0), out_tile.index(0))
        mbarrier.wait(ready.index(0), 1)


@gluon.jit
def product_kernel(a_desc, b_desc, out_desc, BREAK: gl.constexpr):
    """out (64, 128) float32 = 2 * a (64, 64) @ b (64, 128)."""
    a = gl.allocate_shared_memory(a_desc.dtype, a_desc.block_type.shape, a_desc.layout)
    b = gl.allocate_shared_memory(b_desc.dtype, b_desc.block_type.shape, b_desc.layout)
    ready = make_barriers(2)
    if BREAK != "no fence after init":
        fence_async_shared()
    EXTRA: gl.constexpr = 16 if BREAK == "bytes that never come" else 0
    mbarrier.expect(ready.index(0), a_desc.block_type.nbytes + b_desc.block_type.nbytes + EXTRA)
    async_load(a_desc, [0, 0], ready.index(0), a)
    async_load(b_desc, [0, 0], ready.index(0), b)
    if BREAK != "load not waited for":
        mbarrier.wait(ready.index(0), 0)
    gl.warp_specialize([(multiplier, (a, b, a_desc, out_desc, ready, BREAK)), (doubler, (a, ready, BREAK))], [4], [152])


@gluon.jit
def product_of_8_bits_kernel(a_desc, b_desc, out_desc, IS_DENSE: gl.constexpr):
    """out (64, 64) float32 = a (64, 64) @ b (64, 64) of float8, b given transposed if IS_DENSE, as it must be."""
    a = gl.allocate_shared_memory(a_desc.dtype, a_desc.block_type.shape, a_desc.layout)
    b = gl.allocate_shared_memory(b_desc.dtype, b_desc.block_type.shape, b_desc.layout)
    out = gl.allocate_shared_memory(gl.float32, [64, 64], out_desc.layout)
    ready = make_barriers(1)
    fence_async_shared()
    mbarrier.expect(ready.index(0), a_desc.block_type.nbytes + b_desc.block_type.nbytes)
    async_load(a_desc, [0, 0], ready.index(0), a)
    async_load(b_desc, [0, 0], ready.index(0), b)
    mbarrier.wait(ready.index(0), 0)
    second = b.permute((1, 0)) if IS_DENSE else b
    product = warpgroup_mma(a, second, gl.zeros([64, 64], gl.float32, PRODUCT), use_acc=False, is_async=True)
    out.store(warpgroup_mma_wait(0, [product]))
    fence_async_shared()
    async_store(out_desc, [0, 0], out)
    tma.store_wait(0)


@gluon.jit
def words_kernel(x_ptr, words_ptr, TO_E4M3: gl.constexpr):
    """Four neighbours of x (256,) float32 in a word of float8, by inline assembly; and x in float8, by a cast."""
    i = gl.arange(0, 64, LINE)
    low = gl.join(gl.load(x_ptr + 4 * i), gl.load(x_ptr + 4 * i + 1))
    high = gl.join(gl.load(x_ptr + 4 * i + 2), gl.load(x_ptr + 4 * i + 3))
    first, second = gl.split(low)
    third, fourth = gl.split(high)
    words = gl.inline_asm_elementwise(
        TO_E4M3, "=r,r,r,r,r", [first, second, third, fourth], dtype=gl.int32, is_pure=True, pack=1
    )
    gl.store(words_ptr + i, words)
    gl.store(words_ptr + (64 + i), first.to(gl.float8e4nv).to(gl.int8, bitcast=True).to(gl.int32))


@gluon.jit
def scalars_kernel(out_ptr, n, m, WIDTH: gl.constexpr = 4):
    """Integers as a GPU's: truncating division, 32 bits, values that do not change."""
    i = gl.arange(0, WIDTH, LINE)
    x = i - 2
    y = x
    y *= 3  # does not change x
    gl.store(out_ptr + i, x // 2 * 1000 + x % 2 * 100 + y, mask=i < max(n, 3))
    gl.store(out_ptr + WIDTH, n // m * 100 + n % m)
    gl.store(out_ptr + (WIDTH + 1), gl.load(out_ptr + (WIDTH + 2)) + gl.num_programs(0))
    wide = n.to(gl.int64) * 1_000_000_000 * 1_000_000_000 // 1_000_000_000 // 1_000_000_000
    gl.store(out_ptr + (WIDTH + 3), wide.to(gl.int32))


@gluon.jit
def softmax_kernel(x_ptr, out_ptr, scale, columns, WIDTH: gl.constexpr):
    """A row of softmax in base 2."""
    i = gl.arange(0, WIDTH, LINE)
    row = gl.program_id(0) * columns
    x = gl.load(x_ptr + (row + i), mask=i < columns, other=-float("inf")).to(gl.float32) * scale
    x = x - gl.max(x, 0)
    p = gl.exp2(x)
    gl.store(out_ptr + (row + i), (p / gl.sum(p, 0)).to(gl.float16), mask=i < columns)


@gluon.jit
def sum_kernel(x_desc, out_desc, tiles, STAGES: gl.constexpr):
    """Every program adds its share of the tiles of `x` (B, H, S, D) to `out` (1, 1, 16, D) by TMA reductions."""
    x = gl.allocate_shared_memory(x_desc.dtype, [STAGES] + x_desc.block_type.shape, x_desc.layout)  # noqa: RUF005
    full = make_barriers(STAGES)
    fence_async_shared()
    heads = x_desc.shape[1]
    t = gl.program_id(0) * 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        stage = t % STAGES
        if t >= STAGES:
            tma.store_wait(STAGES - 1)
        mbarrier.expect(full.index(stage), x_desc.block_type.nbytes)
        batch = tile // 3 // heads
        async_load(x_desc, [batch, tile // 3 % heads, tile % 3 * 16, 0], full.index(stage), x.index(stage))
        mbarrier.wait(full.index(stage), (t // STAGES) & 1)
        async_atomic_add(out_desc, [0, 0, 0, 0], x.index(stage))
        t += 1
    tma.store_wait(0)


@gluon.jit
def meet(number: gl.constexpr, threads: gl.constexpr):
    """bar.sync, as inline assembly."""
    gl.inline_asm_elementwise(
        "bar.sync " + number + ", " + threads + "; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def turn_writer(tile, out_ptr, BREAK: gl.constexpr):
    tile.index(0).store(gl.full([128], 1.0, gl.float32, LINE))
    meet("5" if BREAK == "different barriers" else "4", "192" if BREAK == "different counts" else "256")
    gl.store(out_ptr + 128 + gl.arange(0, 128, LINE), tile.index(1).load(LINE))


@gluon.jit
def turn_reader(tile, out_ptr, BREAK: gl.constexpr):
    tile.index(1).store(gl.full([128], 2.0, gl.float32, LINE))
    if BREAK != "no barrier":
        meet("1" if BREAK == "Triton's barrier" else "4", "256")
    gl.store(out_ptr + gl.arange(0, 128, LINE), tile.index(0).load(LINE))


@gluon.jit
def exchange_kernel(out_ptr, BREAK: gl.constexpr):
    """Two partitions swap what they wrote, by a named barrier of inline assembly. out (programs, 256)."""
    out_ptr += gl.program_id(0) * 256
    layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    tile = gl.allocate_shared_memory(gl.float32, [2, 128], layout)
    gl.warp_specialize(
        [(turn_writer, (tile, out_ptr, BREAK)), (turn_reader, (tile, out_ptr, BREAK))],
        [4], [256 if BREAK != "registers" else 20],
    )  # fmt: skip


@gluon.jit
def sender(ready, BREAK: gl.constexpr):
    mbarrier.arrive(ready.index(0), count=1)
    if BREAK != "phase overtaken":
        mbarrier.wait(ready.index(1), 0)
    mbarrier.arrive(ready.index(0), count=1)


@gluon.jit
def receiver(ready):
    mbarrier.wait(ready.index(0), 0)
    mbarrier.arrive(ready.index(1), count=1)
    mbarrier.wait(ready.index(0), 1)


@gluon.jit
def phases_kernel(BREAK: gl.constexpr):
    """One partition waits for two phases of a barrier, which the other ends."""
    ready = make_barriers(2)
    gl.warp_specialize([(sender, (ready, BREAK)), (receiver, (ready,))], [1], [24])


@gluon.jit
def misuse_kernel(x_ptr, n, WHAT: gl.constexpr):
    """Misuses one thing each."""
    i = gl.arange(0, 64, LINE)
    layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    x = gl.load(x_ptr + i)
    if WHAT == "ranks":
        x = x + gl.expand_dims(x, 0)
    if WHAT == "condition":
        if x > 0:
            x += 1
    if WHAT == "too much shared memory":
        gl.allocate_shared_memory(gl.float32, [65536], layout)
    if WHAT == "index":
        gl.allocate_shared_memory(gl.float32, [2, 64], layout).index(n).store(x)
    if WHAT == "shape":
        gl.allocate_shared_memory(gl.float32, [2, 64], layout).store(x)
    if WHAT == "never written":
        x = gl.allocate_shared_memory(gl.float32, [64], layout).load(LINE)
    if WHAT == "hint":
        gl.multiple_of(n, 16)
    if WHAT == "assumption":
        gl.assume(n > 2)
    if WHAT == "bounds":
        x = gl.load(x_ptr + (i + n))
    if WHAT == "overlapping store":
        gl.store(x_ptr + i // 2, x)
    if WHAT == "unsupported":
        x = gl.associative_scan(x, 0, max)
    if WHAT == "method":
        gl.allocate_shared_memory(gl.float32, [64], layout)._reinterpret(gl.int32, [64], layout).load(LINE)
    if WHAT == "assembly":
        gl.inline_asm_elementwise("vote.sync.any.pred $0, $1, 0;", "=r,r", [x], dtype=gl.int32, is_pure=True, pack=1)
    gl.store(x_ptr + 64 + i, x)


@gluon.jit
def work_kernel(places_ptr, planes, tiles, section, LONGEST: gl.constexpr):
    """What each program computes, in order: plane and tile, in (programs, LONGEST, 2)."""
    work = Work(planes, tiles, section)
    for number in range(count_of(work)):
        plane, tile = place_of(number, work)
        place = places_ptr + (gl.program_id(0) * LONGEST + number) * 2
        gl.store(place, plane)
        gl.store(place + 1, tile)
