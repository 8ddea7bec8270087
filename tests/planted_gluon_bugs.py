"""Bugs planted in the Hopper attention kernels, each of which the simulator must notice on every schedule; and edits
that change nothing, which it must accept."""

from planted_gluon import BWD, DQ, FWD, RING, Edit, GluonBug


def bug(name: str, case: str, file: str, old: str, new: str, *more: tuple[str, str]) -> GluonBug:
    """An edit of a file, and further ones of (old, new)."""
    return GluonBug(f"{file}: {name}", case, tuple(Edit(file, *edit) for edit in ((old, new), *more)))


def without(name: str, case: str, file: str, line: str) -> GluonBug:
    """A line that is not there."""
    return bug(name, case, file, line, "")


def swapped(name: str, case: str, file: str, first: str, second: str) -> GluonBug:
    """Two passages, one after the other, in the other order."""
    return bug(name, case, file, first + second, second + first)


# fmt: off
RING_BUGS = [
    without("stage filled while it is read", "fwd", RING, "    mbarrier.wait(ring.empty.index(stage), (t // STAGES) & 1 ^ 1)\n"),
    without("stage of queries filled while it is read", "dkdv", RING, "    mbarrier.wait(ring.empty.index(stage), (t // STAGES) & 1 ^ 1)\n"),
    bug("phase of an empty stage", "fwd", RING, "(t // STAGES) & 1 ^ 1)", "(t // STAGES) & 1)"),
    bug("phase of an empty stage by the tile", "fwd", RING, "(t // STAGES) & 1 ^ 1)", "t & 1 ^ 1)"),
    bug("full stage after two arrivals", "fwd", RING, "full = make_barriers(STAGES, 1)", "full = make_barriers(STAGES, 2)"),
    bug("empty stage after one of two readers", "fwd", RING, "make_barriers(STAGES, READERS)", "make_barriers(STAGES, 1)"),
    bug("empty stage after one of two readers of queries", "dkdv", RING, "make_barriers(STAGES, READERS)", "make_barriers(STAGES, 1)"),
    bug("empty stage after three readers", "dq", RING, "make_barriers(STAGES, READERS)", "make_barriers(STAGES, READERS + 1)"),
    bug("half of the bytes announced", "fwd", RING, "full.index(stage), nbytes)", "full.index(stage), nbytes // 2)"),
    bug("twice the bytes announced", "dq", RING, "full.index(stage), nbytes)", "full.index(stage), nbytes * 2)"),
    bug("no bytes announced", "fwd", RING, "mbarrier.expect(ring.full.index(stage), nbytes)", "mbarrier.arrive(ring.full.index(stage), count=1)"),
    bug("tile loaded into another stage", "fwd", RING, "ring.tiles.index(stage))", "ring.tiles.index(1 - stage))"),
    bug("load announced on one stage, counted on another", "dq", RING, "ring.full.index(stage), ring.tiles", "ring.full.index(0), ring.tiles"),
    bug("phase of a full stage", "fwd", RING, "ring.full.index(t % STAGES), (t // STAGES) & 1)", "ring.full.index(t % STAGES), (t // STAGES) & 1 ^ 1)"),
    bug("phase of a full stage by the tile", "dq", RING, "ring.full.index(t % STAGES), (t // STAGES) & 1)", "ring.full.index(t % STAGES), t & 1)"),
    bug("wait for the first stage alone", "fwd", RING, "ring.full.index(t % STAGES)", "ring.full.index(0)"),
    bug("tile of the neighbouring stage", "dkdv", RING, "ring.tiles.index(t % ring", "ring.tiles.index((t + 1) % ring"),
    bug("another stage released", "fwd", RING, "ring.empty.index(t % ring.tiles.shape[0])", "ring.empty.index(0)"),
    bug("two arrivals of a reader", "dq", RING, "ring.empty.index(t % ring.tiles.shape[0]), count=1", "ring.empty.index(t % ring.tiles.shape[0]), count=2"),
    bug("one barrier initialised", "fwd", RING, "gl.static_range(STAGES)", "gl.static_range(1)"),
    bug("last tile not visited", "fwd", RING, "gl.cdiv(last, BLOCK_N) - first", "last // BLOCK_N - first"),
    bug("tiles of the first consumer alone", "dq", RING, "start_m + 2 * ROWS - 1 + upper", "start_m + ROWS - 1 + upper"),
    bug("diagonal off by one", "fwd", RING, "upper = diagonal + right + 1", "upper = diagonal + right"),
    bug("window off by one", "fwd, window", RING, "lower = diagonal - left", "lower = diagonal - left + 1"),
    bug("first tile of a window skipped", "dq, window", RING, "first = gl.maximum(start_m + lower, 0) // BLOCK_N", "first = gl.cdiv(gl.maximum(start_m + lower, 0), BLOCK_N)"),
    bug("tile on the diagonal not masked", "fwd", RING, "last // BLOCK_N - sight.first", "gl.cdiv(last, BLOCK_N) - sight.first"),
    bug("diagonal of the last row for all of them", "dq", RING, "gl.maximum(start_m + sight.upper, 0)", "gl.maximum(start_m + ROWS + sight.upper, 0)"),
    bug("window of the first row for all of them", "fwd, window", RING, "gl.maximum(start_m + ROWS - 1 + sight.lower, 0)", "gl.maximum(start_m + sight.lower, 0)"),
    bug("mask counts tiles from the first key", "dq, window", RING, "start_n = (sight.first + t) * BLOCK_N", "start_n = t * BLOCK_N"),
    bug("keys past the end seen", "fwd, window", RING, "end = gl.minimum(end, i + sight.upper)", "end = i + sight.upper"),
    bug("key after the last one seen", "fwd, full", RING, "visible = j < ", "visible = j <= "),
    bug("first key of a window not seen", "dq, window", RING, "(j >= gl", "(j > gl"),
    bug("flag of tiles counted from the other end", "fwd, flags", RING, "tiles - 1 - start // ROWS", "start // ROWS"),
    bug("flag of a tile past the end", "dq, flags", RING, "if start < length:", "if start < length + 2 * ROWS:"),
]

K_WAIT = "    await_tile(shared.k, t)\n"
FWD_BUGS = [
    without("no wait for K", "fwd", FWD, K_WAIT),
    without("no wait for the first K", "fwd", FWD, "    await_tile(shared.k, 0)\n"),
    without("no wait for V", "fwd", FWD, "    await_tile(shared.v, t - 1)\n"),
    without("no wait for the last V", "fwd", FWD, "    await_tile(shared.v, tiles - 1)\n"),
    without("no wait for Q", "fwd", FWD, "    mbarrier.wait(shared.q_full.index(wid), 0)\n"),
    bug("wait for the other consumer's Q", "fwd", FWD, "mbarrier.wait(shared.q_full.index(wid), 0)", "mbarrier.wait(shared.q_full.index(1 - wid), 0)"),
    bug("wait for the wrong V", "fwd", FWD, "await_tile(shared.v, t - 1)", "await_tile(shared.v, t)"),
    bug("K of the tile before", "fwd", FWD, "tile_of(shared.k, t)", "tile_of(shared.k, t - 1)"),
    bug("V of the tile after", "fwd", FWD, "tile_of(shared.v, t - 1)", "tile_of(shared.v, t)"),
    swapped("first K released before its product is done", "fwd", FWD, "    s = warpgroup_mma_wait(0, [s])\n", "    release(shared.k, 0)\n"),
    swapped("V released before its product is done", "fwd", FWD, "    acc = warpgroup_mma_wait(0, [acc])\n", "    release(shared.v, t - 1)\n"),
    bug("wait leaves S under way", "fwd", FWD, "wait(1, [s])", "wait(2, [s])"),
    bug("wait leaves O under way", "fwd", FWD, "wait(0, [acc])\n    release", "wait(1, [acc])\n    release"),
    bug("last wait leaves O under way", "fwd", FWD, "wait(0, [acc])\n\n", "wait(1, [acc])\n\n"),
    bug("nobody has the first turn", "fwd", FWD, "mbarrier.arrive(turn.index(0), count=1)", "pass"),
    bug("turn passed to oneself", "fwd", FWD, "shared.turn.index(1 - wid)", "shared.turn.index(wid)"),
    bug("turn after two arrivals", "fwd", FWD, "turn = make_barriers(2, 1)", "turn = make_barriers(2, 2)"),
    bug("turn passed twice", "fwd", FWD, "shared.turn.index(1 - wid), count=1", "shared.turn.index(1 - wid), count=2"),
    bug("Q after two arrivals", "fwd", FWD, "q_full = make_barriers(2, 1)", "q_full = make_barriers(2, 2)"),
    without("barriers not fenced", "fwd", FWD, "    fence_async_shared()\n    if PING_PONG:\n        mbarrier.arrive(turn.index(0), count=1)\n"),
    without("K never released", "fwd", FWD, "    release(shared.k, t)\n"),
    without("V never released", "fwd", FWD, "    release(shared.v, t - 1)\n"),
    bug("K released twice", "fwd", FWD, "    release(shared.k, t)\n", "    release(shared.k, t)\n    release(shared.k, t)\n"),
    bug("V of the wrong tile released", "fwd", FWD, "release(shared.v, t - 1)", "release(shared.v, t)"),
    bug("O not fenced", "fwd", FWD, "    fence_async_shared()\n    async_store", "    async_store"),
    swapped("O fenced before it is written", "fwd", FWD, "    out.reshape([ROWS, DV]).store(acc.to(shared.out.dtype))\n", "    fence_async_shared()\n"),
    without("store of O left under way", "fwd", FWD, "    tma.store_wait(0)\n"),
    bug("O over the other consumer's Q", "fwd", FWD, "shared.out.index(wid)", "shared.out.index(1 - wid)"),
    bug("O of both consumers in the same rows", "fwd", FWD, "plane % heads, start_m, 0], out)", "plane % heads, start_m // 128 * 128, 0], out)"),
    bug("O in the first head", "fwd", FWD, "[plane // heads, plane % heads, start_m", "[plane // heads, plane * 0, start_m"),
    bug("LSE of rows past the end", "fwd", FWD, ", lse, mask=i < seqlen_q)", ", lse)"),
    bug("LSE in base 2", "fwd", FWD, "(peak + gl.log2(total)) * LN_2", "peak + gl.log2(total)"),
    bug("O not rescaled", "fwd", FWD, "t - 1)\n    acc = acc * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, out_layout)), 1)\n", "t - 1)\n"),
    bug("total not rescaled", "fwd", FWD, "total * shrink + gl.sum", "total + gl.sum"),
    bug("weights of the tile before", "fwd", FWD, "    p, peak, total, shrink = _softmax(s, peak, total, i, t,", "    _, peak, total, shrink = _softmax(s, peak, total, i, t,"),
    bug("mask missing from the diagonal on", "fwd", FWD, "range(whole_last, tiles):\n        acc, peak, total, p = _fwd_step(\n            t, acc, peak, total, p, q, shared, sight, i, scale_log2, wid, True", "range(whole_last, tiles):\n        acc, peak, total, p = _fwd_step(\n            t, acc, peak, total, p, q, shared, sight, i, scale_log2, wid, False"),
    bug("mask missing before the window's whole tiles", "fwd, window", FWD, "range(1, whole_first):\n            acc, peak, total, p = _fwd_step(\n                t, acc, peak, total, p, q, shared, sight, i, scale_log2, wid, True", "range(1, whole_first):\n            acc, peak, total, p = _fwd_step(\n                t, acc, peak, total, p, q, shared, sight, i, scale_log2, wid, False"),
    bug("first tile not masked", "fwd, window", FWD, "_softmax(s, peak, total, i, 0, sight, scale_log2, True", "_softmax(s, peak, total, i, 0, sight, scale_log2, False"),
    bug("first tile taken twice", "fwd, window", FWD, "range(1, whole_first)", "range(0, whole_first)"),
    bug("tile skipped after the whole ones", "fwd", FWD, "range(whole_last, tiles)", "range(whole_last + 1, tiles)"),
    bug("wrong head of K", "fwd", FWD, "fill(shared.k, k_desc, batch, head // group", "fill(shared.k, k_desc, batch, head % group"),
    bug("wrong head of V", "fwd", FWD, "fill(shared.v, v_desc, batch, head // group", "fill(shared.v, v_desc, batch, head % group"),
    bug("producer stops early", "fwd", FWD, "for t in range(sight.tiles):", "for t in range(sight.tiles - 1):"),
    bug("producer loads too much", "fwd", FWD, "for t in range(sight.tiles):", "for t in range(sight.tiles + 1):"),
    bug("producer counts tiles from the first key", "fwd, window", FWD, "start_n = (sight.first + t) * BLOCK_N", "start_n = t * BLOCK_N"),
    bug("half of Q's bytes announced", "fwd", FWD, "q_desc.block_type.nbytes)", "q_desc.block_type.nbytes // 2)"),
    bug("both tiles of Q in one place", "fwd", FWD, "shared.q_full.index(wid), shared.q.index(wid))", "shared.q_full.index(wid), shared.q.index(0))"),
    bug("sink not in base 2", "fwd, wide values", FWD, "gl.load(sinks_ptr + plane % heads) * LOG2_E", "gl.load(sinks_ptr + plane % heads)"),
    bug("sink of the first head", "fwd, wide values", FWD, "sinks_ptr + plane % heads", "sinks_ptr + plane * 0"),
    bug("sink not in the total", "fwd, wide values", FWD, "total * shrink + gl.exp2(sink - new_peak)", "total * shrink"),
    bug("NaN where a query sees no key", "fwd, flags", FWD, 'gl.where(sees_none, 1.0, float("nan"))', 'float("nan")'),
    bug("LSE of 0 where a query sees no key", "fwd, flags", FWD, "gl.where(sees_none, -INF, ", "gl.where(sees_none, 0.0, "),
]

DQ_BUGS = [
    without("no wait for Q and dO", "dq", DQ, "    mbarrier.wait(shared.rows_full.index(wid), 0)\n"),
    without("no wait for K", "dq", DQ, K_WAIT),
    without("no wait for V", "dq", DQ, "    await_tile(shared.v, t)\n"),
    swapped("K released before its products are done", "dq", DQ, "    dq = warpgroup_mma_wait(0, [dq])\n", "    release(shared.k, t)\n"),
    bug("wait leaves S under way", "dq", DQ, "wait(1, [s])", "wait(2, [s])"),
    bug("wait leaves dP under way", "dq", DQ, "wait(0, [dp])", "wait(1, [dp])"),
    bug("wait leaves dQ under way", "dq", DQ, "wait(0, [dq])", "wait(1, [dq])"),
    bug("bytes of dO not announced", "dq", DQ, "q_desc.block_type.nbytes + dout_desc.block_type.nbytes", "q_desc.block_type.nbytes"),
    bug("dO of the first consumer for both", "dq", DQ, "async_load(dout_desc, [batch, head, rows, 0]", "async_load(dout_desc, [batch, head, start_m, 0]"),
    bug("barriers not fenced", "dq", DQ, "    fence_async_shared()\n    gl.warp_specialize", "    gl.warp_specialize"),
    bug("dQ not fenced", "dq", DQ, "    fence_async_shared()\n    async_store", "    async_store"),
    without("store of dQ left under way", "dq", DQ, "    tma.store_wait(0)\n"),
    bug("dQ scaled in base 2", "dq", DQ, "dq * (scale_log2 * LN_2)", "dq * scale_log2"),
    bug("shift of rows past the end read", "dq", DQ, "gl.load(shift_ptr + offsets, mask=i < seqlen_q, other=0.0)", "gl.load(shift_ptr + offsets)"),
    bug("delta of the first head", "dq", DQ, "gl.load(delta_ptr + offsets", "gl.load(delta_ptr + i"),
    bug("mask missing from the diagonal on", "dq", DQ, "range(whole_last, sight.tiles):\n        dq = _dq_step(t, dq, q, dout, shift, delta, shared, sight, i, scale_log2, True", "range(whole_last, sight.tiles):\n        dq = _dq_step(t, dq, q, dout, shift, delta, shared, sight, i, scale_log2, False"),
    bug("V in K's place", "dq", DQ, "warpgroup_mma(ds, tile_of(shared.k, t), dq", "warpgroup_mma(ds, tile_of(shared.v, t), dq"),
    bug("V released twice", "dq", DQ, "    release(shared.v, t)\n", "    release(shared.v, t)\n    release(shared.v, t)\n"),
]

DS_STORED = "        exchange.ds.index(t % 2).slice(ROWS * wid, ROWS).store(ds)\n        fence_async_shared()\n        barrier()\n"
DS_GIVEN = "        mbarrier.arrive(exchange.ds_full.index(t % 2), count=1)\n"
DS_WAIT = "        mbarrier.wait(exchange.ds_full.index(t % 2), (t // 2) & 1)\n"
DQ_WAIT = "        mbarrier.wait(exchange.dq_empty.index(wid), (t & 1) ^ 1)\n"
DQ_STORED = "        exchange.dq.index(wid).reshape([BLOCK_M, D // 2]).store(dq)\n        fence_async_shared()\n        barrier()\n"
DQ_GIVEN = "        mbarrier.arrive(exchange.dq_full.index(wid), count=1)\n"
DQ_SENT = "                tma.store_wait(0)\n"
DQ_FREED = "                for wid in gl.static_range(2):\n                    mbarrier.arrive(exchange.dq_empty.index(wid), count=1)\n"
DK_DONE = "    dk = warpgroup_mma_wait(1 if FUSED else 0, [dk])\n"
DV_DONE = "    dv = warpgroup_mma_wait(2 if FUSED else 1, [dv])\n"
BWD_BUGS = [
    bug("dK scaled in base 2", "dkdv", BWD, "scale_log2 * LN_2", "scale_log2"),
    bug("dS not fenced", "bwd", BWD, "store(ds)\n        fence_async_shared()\n", "store(ds)\n"),
    swapped("dS handed over before it is there", "bwd", BWD, DS_STORED, DS_GIVEN),
    without("no wait for the other's dS", "bwd", BWD, DS_WAIT),
    bug("phase of dS", "bwd", BWD, DS_WAIT, DS_WAIT.replace("& 1", "& 1 ^ 1")),
    bug("phase of dS as if it had one buffer", "bwd", BWD, DS_WAIT, DS_WAIT.replace("(t // 2)", "t")),
    bug("dS after one arrival", "bwd", BWD, "ds_full = make_barriers(2, 2)", "ds_full = make_barriers(2, 1)"),
    bug("dS after three arrivals", "bwd", BWD, "ds_full = make_barriers(2, 2)", "ds_full = make_barriers(2, 3)"),
    bug("one buffer of dS", "bwd", BWD, "ds.index(t % 2).slice", "ds.index(t * 0).slice", ("ds.index(t % 2).permute", "ds.index(t * 0).permute")),
    bug("dS of both consumers in the same rows", "bwd", BWD, "slice(ROWS * wid, ROWS).store", "slice(0, ROWS).store"),
    bug("dQ of both consumers from the same columns of K", "bwd", BWD, "k.slice(wid * (D // 2)", "k.slice(0 * (D // 2)"),
    without("dQ over the tile that the writer reads", "bwd", BWD, DQ_WAIT),
    bug("phase of a free dQ", "bwd", BWD, DQ_WAIT, DQ_WAIT.replace(" ^ 1", "")),
    bug("dQ not fenced", "bwd", BWD, "store(dq)\n        fence_async_shared()\n", "store(dq)\n"),
    swapped("dQ handed over before it is there", "bwd", BWD, DQ_STORED, DQ_GIVEN),
    without("writer does not wait for dQ", "bwd", BWD, "                    mbarrier.wait(exchange.dq_full.index(wid), t & 1)\n"),
    bug("writer waits for one half of dQ", "bwd", BWD, "mbarrier.wait(exchange.dq_full.index(wid)", "mbarrier.wait(exchange.dq_full.index(0)"),
    swapped("writer frees dQ before it is read", "bwd", BWD, DQ_SENT, DQ_FREED),
    bug("writer leaves a reduction under way", "bwd", BWD, DQ_SENT, DQ_SENT.replace("0", "1")),
    bug("writer frees one half of dQ", "bwd", BWD, "mbarrier.arrive(exchange.dq_empty.index(wid)", "mbarrier.arrive(exchange.dq_empty.index(0)"),
    bug("halves of dQ in the same columns", "bwd", BWD, "column = wid * exchange", "column = 0 * exchange"),
    bug("dQ stored, not added", "bwd", BWD, "async_atomic_add(dq_desc", "async_store(dq_desc"),
    bug("dQ of the next tile", "bwd", BWD, "tile * BLOCK_M, column]", "tile * BLOCK_M + BLOCK_M, column]"),
    bug("dQ of the wrong head", "bwd", BWD, "head = kv_head * group + member\n            for tile in range(first, last):\n                for", "head = kv_head + member * 0\n            for tile in range(first, last):\n                for"),
    without("dK over Q that the other reads", "dkdv", BWD, "    mbarrier.wait(shared.queries_done.index(0), 0)  # the other has read the last of q, where dK may go\n"),
    bug("queries done after one arrival", "dkdv", BWD, "queries_done = make_barriers(1, 2)", "queries_done = make_barriers(1, 1)"),
    bug("dK and dV not fenced", "dkdv", BWD, "store(dk.to(dtype))\n    fence_async_shared()\n", "store(dk.to(dtype))\n"),
    without("dK and dV not waited for", "dkdv", BWD, "    mbarrier.wait(shared.done.index(0), 0)\n"),
    bug("done after one arrival", "dkdv", BWD, "    done = make_barriers(1, 2)", "    done = make_barriers(1, 1)"),
    without("stores of dK and dV left under way", "dkdv", BWD, "\n    tma.store_wait(0)"),
    bug("dK of both consumers in the same rows", "dkdv", BWD, "start_n + wid * ROWS, 0], shared.dk", "start_n, 0], shared.dk"),
    bug("dV in dK's place", "dkdv", BWD, "0], shared.dk.index(wid))", "0], shared.v.index(wid))"),
    without("no wait for K and V", "dkdv", BWD, "    mbarrier.wait(shared.keys_full.index(0), 0)\n"),
    without("no wait for Q", "dkdv", BWD, "    await_tile(shared.q, t)\n"),
    without("no wait for dO", "dkdv", BWD, "    await_tile(shared.dout, t)\n"),
    bug("half of V's bytes announced", "dkdv", BWD, "+ 2 * v_desc", "+ v_desc"),
    bug("bytes of shift not announced", "dkdv", BWD, "q_desc.block_type.nbytes + shift_desc.block_type.nbytes", "q_desc.block_type.nbytes"),
    bug("bytes of delta not announced", "dkdv", BWD, "dout_desc.block_type.nbytes + delta_desc.block_type.nbytes", "dout_desc.block_type.nbytes"),
    bug("shift of the neighbouring stage", "dkdv", BWD, "shared.shift.index(t %", "shared.shift.index((t + 1) %"),
    bug("delta of the neighbouring stage", "dkdv", BWD, "shared.delta.index(t %", "shared.delta.index((t + 1) %"),
    bug("delta loaded into the neighbouring stage", "dkdv", BWD, "full, shared.delta.index(stage)", "full, shared.delta.index(1 - stage)"),
    bug("dO's bytes on Q's barrier", "dkdv", BWD, "            full = shared.dout.full.index(stage)\n", ""),
    bug("wait leaves S under way", "dkdv", BWD, "wait(1, [s])", "wait(2, [s])"),
    bug("wait leaves dP under way", "dkdv", BWD, "wait(0, [dp])", "wait(1, [dp])"),
    bug("wait leaves dV under way", "dkdv", BWD, DV_DONE, DV_DONE.replace("else 1", "else 2")),
    bug("wait leaves dK under way", "dkdv", BWD, DK_DONE, DK_DONE.replace("else 0", "else 1")),
    bug("fused wait leaves dV under way", "bwd", BWD, DV_DONE, DV_DONE.replace("2 if", "3 if")),
    bug("fused wait leaves dK under way", "bwd", BWD, DK_DONE, DK_DONE.replace("1 if", "2 if")),
    bug("wait leaves dQ under way", "bwd", BWD, "wait(0, [dq])", "wait(1, [dq])"),
    swapped("Q released before its products are done", "dkdv", BWD, DK_DONE, "    release(shared.q, t)\n"),
    bug("one reader of Q counted", "dkdv", BWD, "q = make_ring(q_desc, STAGES, 2)", "q = make_ring(q_desc, STAGES, 1)"),
    bug("barriers not fenced", "dkdv", BWD, "    fence_async_shared()\n    gl.warp_specialize", "    gl.warp_specialize"),
    bug("diagonal off by one", "dkdv", BWD, "hidden -= wid * ROWS", "hidden -= wid * ROWS - 1"),
    bug("tile on the diagonal not masked", "dkdv", BWD, "(ROWS - 1 if CAUSAL", "(ROWS - 1 - BLOCK_M if CAUSAL"),
    bug("last keys hidden", "bwd, full", BWD, "visible = gl.expand_dims(rows < 0, 1)", "visible = gl.expand_dims(rows < -4, 1)"),
    without("next head's diagonal where the last one's was", "dkdv", BWD, "            if ahead == hidden + tiles * BLOCK_M:\n                ahead = hidden\n"),
    bug("first tile of queries skipped", "dkdv", BWD, "gl.maximum(start_n - right, 0) // BLOCK_M", "gl.cdiv(gl.maximum(start_n - right, 0), BLOCK_M)"),
    bug("wrong head of Q", "dkdv", BWD, "head = kv_head * group + member\n        for", "head = kv_head + member * 0\n        for"),
    bug("last tile of queries not visited", "dkdv", BWD, "last = gl.cdiv(seqlen_q, BLOCK_M)", "last = seqlen_q // BLOCK_M"),
    bug("flag of a tile past the end", "dkdv, flags", BWD, "if tile * ROWS < seqlen_k:", "if tile * ROWS < seqlen_k + ROWS:"),
]

BUGS = [*RING_BUGS, *FWD_BUGS, *DQ_BUGS, *BWD_BUGS]

HARMLESS = [
    # Before the producer loads K(t) it has waited for the stage of V(t - 1), which is released after S(t - n) is done.
    swapped("later K released before its product is done", "fwd", FWD, "    s = warpgroup_mma_wait(1, [s])\n", "    release(shared.k, t)\n"),
    without("no turns", "fwd", FWD, "    if PING_PONG:\n        mbarrier.wait(shared.turn.index(wid), (t - 1) & 1)\n"),
    bug("a fence more", "fwd", FWD, "    fence_async_shared()\n    async_store", "    fence_async_shared()\n    fence_async_shared()\n    async_store"),
    bug("wait for V with that for K", "fwd", FWD, K_WAIT, K_WAIT + "    await_tile(shared.v, t - 1)\n"),
    bug("three stages", "fwd", FWD, "k = make_ring(k_desc, STAGES, 2)", "k = make_ring(k_desc, STAGES + 1, 2)"),
    # Before the producer loads V(t) it has waited for the stage of K(t - n), which is released later.
    swapped("V released before its product is done", "dq", DQ, "    dp = warpgroup_mma_wait(0, [dp])\n", "    release(shared.v, t)\n"),
    bug("all products waited for", "dq", DQ, "    s = warpgroup_mma_wait(1, [s])\n", "    s, dp = warpgroup_mma_wait(0, [s, dp])\n", ("    dp = warpgroup_mma_wait(0, [dp])\n", "")),
    swapped("dO released before its product is done", "bwd", BWD, DV_DONE, "    release(shared.dout, t)\n"),
    bug("dS handed over after dK is under way", "bwd", BWD, DS_GIVEN, "", (DS_WAIT, DS_GIVEN + DS_WAIT)),
    bug("halves of dQ freed in the other order", "bwd", BWD, "exchange.dq_empty.index(wid), count=1", "exchange.dq_empty.index(1 - wid), count=1"),
    bug("reduction waited for at once", "bwd", BWD, "exchange.dq.index(wid))\n", "exchange.dq.index(wid))\n                    tma.store_wait(0)\n"),
]
# fmt: on
