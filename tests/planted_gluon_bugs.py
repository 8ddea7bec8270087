"""Bugs planted in the rings of tiles and in the forward kernel: the simulator must notice each, on every schedule.

HARMLESS: edits that change nothing, which it must accept.
"""

from planted_gluon import FWD, RING, bug, swapped, without

K_WAIT = "    await_tile(shared.k, t)\n"
LAST_LOOP = """range(whole_last, tiles):
        acc, peak, total, p = _fwd_step(
            t, acc, peak, total, p, q, shared, sight, i, scale_log2, wid, """
WINDOW_LOOP = """range(1, whole_first):
            acc, peak, total, p = _fwd_step(
                t, acc, peak, total, p, q, shared, sight, i, scale_log2, wid, """
RING_BUGS = [
    without(
        "stage filled while it is read",
        "fwd",
        RING,
        "    mbarrier.wait(ring.empty.index(stage), (t // STAGES) & 1 ^ 1)\n",
    ),
    without(
        "stage of queries filled while it is read",
        "dkdv",
        RING,
        "    mbarrier.wait(ring.empty.index(stage), (t // STAGES) & 1 ^ 1)\n",
    ),
    bug("phase of an empty stage", "fwd", RING, "(t // STAGES) & 1 ^ 1)", "(t // STAGES) & 1)"),
    bug("phase of an empty stage by the tile", "fwd", RING, "(t // STAGES) & 1 ^ 1)", "t & 1 ^ 1)"),
    bug(
        "full stage after two arrivals",
        "fwd",
        RING,
        "full = make_barriers(STAGES, 1)",
        "full = make_barriers(STAGES, 2)",
    ),
    bug(
        "empty stage after one of two readers",
        "fwd",
        RING,
        "make_barriers(STAGES, READERS)",
        "make_barriers(STAGES, 1)",
    ),
    bug(
        "empty stage after one of two readers of queries",
        "dkdv",
        RING,
        "make_barriers(STAGES, READERS)",
        "make_barriers(STAGES, 1)",
    ),
    bug(
        "empty stage after three readers",
        "dq",
        RING,
        "make_barriers(STAGES, READERS)",
        "make_barriers(STAGES, READERS + 1)",
    ),
    bug("half of the bytes announced", "fwd", RING, "full.index(stage), nbytes)", "full.index(stage), nbytes // 2)"),
    bug("twice the bytes announced", "dq", RING, "full.index(stage), nbytes)", "full.index(stage), nbytes * 2)"),
    bug(
        "no bytes announced",
        "fwd",
        RING,
        "mbarrier.expect(ring.full.index(stage), nbytes)",
        "mbarrier.arrive(ring.full.index(stage), count=1)",
    ),
    bug("tile loaded into another stage", "fwd", RING, "ring.tiles.index(stage))", "ring.tiles.index(1 - stage))"),
    bug(
        "load announced on one stage, counted on another",
        "dq",
        RING,
        "ring.full.index(stage), ring.tiles",
        "ring.full.index(0), ring.tiles",
    ),
    bug(
        "phase of a full stage",
        "fwd",
        RING,
        "ring.full.index(t % STAGES), (t // STAGES) & 1)",
        "ring.full.index(t % STAGES), (t // STAGES) & 1 ^ 1)",
    ),
    bug(
        "phase of a full stage by the tile",
        "dq",
        RING,
        "ring.full.index(t % STAGES), (t // STAGES) & 1)",
        "ring.full.index(t % STAGES), t & 1)",
    ),
    bug("wait for the first stage alone", "fwd", RING, "ring.full.index(t % STAGES)", "ring.full.index(0)"),
    bug("tile of the neighbouring stage", "dkdv", RING, "ring.tiles.index(t % ring", "ring.tiles.index((t + 1) % ring"),
    bug("another stage released", "fwd", RING, "ring.empty.index(t % ring.tiles.shape[0])", "ring.empty.index(0)"),
    bug(
        "two arrivals of a reader",
        "dq",
        RING,
        "ring.empty.index(t % ring.tiles.shape[0]), count=1",
        "ring.empty.index(t % ring.tiles.shape[0]), count=2",
    ),
    bug("one barrier initialised", "fwd", RING, "gl.static_range(STAGES)", "gl.static_range(1)"),
    bug("last tile not visited", "fwd", RING, "gl.cdiv(last, BLOCK_N) - first", "last // BLOCK_N - first"),
    bug(
        "tiles of the first consumer alone", "dq", RING, "start_m + 2 * ROWS - 1 + upper", "start_m + ROWS - 1 + upper"
    ),
    bug("diagonal off by one", "fwd", RING, "gl.minimum(end, i + sight.upper)", "gl.minimum(end, i + sight.upper - 1)"),
    bug(
        "window off by one",
        "fwd, window",
        RING,
        "j >= gl.expand_dims(i + sight.lower, 1)",
        "j >= gl.expand_dims(i + sight.lower - 1, 1)",
    ),
    bug(
        "first tile of a window skipped",
        "dq, window",
        RING,
        "first = gl.maximum(start_m + lower, 0) // BLOCK_N",
        "first = gl.cdiv(gl.maximum(start_m + lower, 0), BLOCK_N)",
    ),
    bug(
        "tile on the diagonal not masked",
        "fwd",
        RING,
        "last // BLOCK_N - sight.first",
        "gl.cdiv(last, BLOCK_N) - sight.first",
    ),
    bug(
        "diagonal of the last row for all of them",
        "dq",
        RING,
        "gl.maximum(start_m + sight.upper, 0)",
        "gl.maximum(start_m + ROWS + sight.upper, 0)",
    ),
    bug(
        "window of the first row for all of them",
        "fwd, window",
        RING,
        "gl.maximum(start_m + ROWS - 1 + sight.lower, 0)",
        "gl.maximum(start_m + sight.lower, 0)",
    ),
    bug(
        "mask counts tiles from the first key",
        "dq, window",
        RING,
        "start_n = (sight.first + t) * BLOCK_N",
        "start_n = t * BLOCK_N",
    ),
    bug(
        "keys past the end seen", "fwd, window", RING, "end = gl.minimum(end, i + sight.upper)", "end = i + sight.upper"
    ),
    bug("key after the last one seen", "fwd, full", RING, "visible = j < ", "visible = j <= "),
    bug("first key of a window not seen", "dq, window", RING, "(j >= gl", "(j > gl"),
    bug("flag of tiles counted from the other end", "fwd, flags", RING, "tiles - 1 - start // ROWS", "start // ROWS"),
    bug("flag of a tile past the end", "dq, flags", RING, "if start < length:", "if start < length + 2 * ROWS:"),
]

FWD_BUGS = [
    without("no wait for K", "fwd", FWD, K_WAIT),
    without("no wait for the first K", "fwd", FWD, "    await_tile(shared.k, 0)\n"),
    without("no wait for V", "fwd", FWD, "    await_tile(shared.v, t - 1)\n"),
    without("no wait for the last V", "fwd", FWD, "    await_tile(shared.v, tiles - 1)\n"),
    without("no wait for Q", "fwd", FWD, "    mbarrier.wait(shared.q_full.index(wid), 0)\n"),
    bug(
        "wait for the other consumer's Q",
        "fwd",
        FWD,
        "mbarrier.wait(shared.q_full.index(wid), 0)",
        "mbarrier.wait(shared.q_full.index(1 - wid), 0)",
    ),
    bug("wait for the wrong V", "fwd", FWD, "await_tile(shared.v, t - 1)", "await_tile(shared.v, t)"),
    bug("K of the tile before", "fwd", FWD, "tile_of(shared.k, t)", "tile_of(shared.k, t - 1)"),
    bug("V of the tile after", "fwd", FWD, "tile_of(shared.v, t - 1)", "tile_of(shared.v, t)"),
    swapped(
        "first K released before its product is done",
        "fwd",
        FWD,
        "    s = warpgroup_mma_wait(0, [s])\n",
        "    release(shared.k, 0)\n",
    ),
    swapped(
        "V released before its product is done",
        "fwd",
        FWD,
        "    acc = warpgroup_mma_wait(0, [acc])\n",
        "    release(shared.v, t - 1)\n",
    ),
    bug("wait leaves S under way", "fwd", FWD, "wait(1, [s])", "wait(2, [s])"),
    bug("wait leaves O under way", "fwd", FWD, "wait(0, [acc])\n    release", "wait(1, [acc])\n    release"),
    bug("last wait leaves O under way", "fwd", FWD, "wait(0, [acc])\n\n", "wait(1, [acc])\n\n"),
    bug("nobody has the first turn", "fwd", FWD, "mbarrier.arrive(turn.index(0), count=1)", "pass"),
    bug("turn passed to oneself", "fwd", FWD, "shared.turn.index(1 - wid)", "shared.turn.index(wid)"),
    bug("turn after two arrivals", "fwd", FWD, "turn = make_barriers(2, 1)", "turn = make_barriers(2, 2)"),
    bug("turn passed twice", "fwd", FWD, "shared.turn.index(1 - wid), count=1", "shared.turn.index(1 - wid), count=2"),
    bug("Q after two arrivals", "fwd", FWD, "q_full = make_barriers(2, 1)", "q_full = make_barriers(2, 2)"),
    without(
        "barriers not fenced",
        "fwd",
        FWD,
        "    fence_async_shared()\n    if PING_PONG:\n        mbarrier.arrive(turn.index(0), count=1)\n",
    ),
    without("K never released", "fwd", FWD, "    release(shared.k, t)\n"),
    without("V never released", "fwd", FWD, "    release(shared.v, t - 1)\n"),
    bug(
        "K released twice",
        "fwd",
        FWD,
        "    release(shared.k, t)\n",
        "    release(shared.k, t)\n    release(shared.k, t)\n",
    ),
    bug("V of the wrong tile released", "fwd", FWD, "release(shared.v, t - 1)", "release(shared.v, t)"),
    bug("O not fenced", "fwd", FWD, "    fence_async_shared()\n    async_store", "    async_store"),
    swapped(
        "O fenced before it is written",
        "fwd",
        FWD,
        "    out.reshape([ROWS, DV]).store(acc.to(shared.out.dtype))\n",
        "    fence_async_shared()\n",
    ),
    without("store of O left under way", "fwd", FWD, "    tma.store_wait(0)\n"),
    bug("O over the other consumer's Q", "fwd", FWD, "shared.out.index(wid)", "shared.out.index(1 - wid)"),
    bug(
        "O of both consumers in the same rows",
        "fwd",
        FWD,
        "query_corner(out_desc, packed, plane, heads, start_m)",
        "query_corner(out_desc, packed, plane, heads, start_m // 128 * 128)",
    ),
    bug(
        "O in the first head",
        "fwd",
        FWD,
        "query_corner(out_desc, packed, plane, heads",
        "query_corner(out_desc, packed, plane * 0, heads",
    ),
    bug("LSE of rows past the end", "fwd", FWD, ", lse, mask=i < seqlen_q)", ", lse)"),
    bug("LSE in base 2", "fwd", FWD, "(peak + gl.log2(total)) * LN_2", "peak + gl.log2(total)"),
    bug(
        "O not rescaled",
        "fwd",
        FWD,
        "t - 1)\n    acc = acc * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, out_layout)), 1)\n",
        "t - 1)\n",
    ),
    bug("total not rescaled", "fwd", FWD, "total * shrink + gl.sum", "total + gl.sum"),
    bug(
        "weights of the tile before",
        "fwd",
        FWD,
        "    p, peak, total, shrink = _softmax(s, peak, total, i, t,",
        "    _, peak, total, shrink = _softmax(s, peak, total, i, t,",
    ),
    bug(
        "mask missing from the diagonal on",
        "fwd",
        FWD,
        LAST_LOOP + "True",
        LAST_LOOP + "False",
    ),
    bug(
        "mask missing before the window's whole tiles",
        "fwd, window",
        FWD,
        WINDOW_LOOP + "True",
        WINDOW_LOOP + "False",
    ),
    bug(
        "first tile not masked",
        "fwd, window",
        FWD,
        "_softmax(s, peak, total, i, 0, sight, scale_log2, True",
        "_softmax(s, peak, total, i, 0, sight, scale_log2, False",
    ),
    bug("first tile taken twice", "fwd, window", FWD, "range(1, whole_first)", "range(0, whole_first)"),
    bug("tile skipped after the whole ones", "fwd", FWD, "range(whole_last, tiles)", "range(whole_last + 1, tiles)"),
    bug(
        "wrong head of K",
        "fwd",
        FWD,
        "fill(shared.k, k_desc, keys, head // group",
        "fill(shared.k, k_desc, keys, head % group",
    ),
    bug(
        "wrong head of V",
        "fwd",
        FWD,
        "fill(shared.v, v_desc, keys, head // group",
        "fill(shared.v, v_desc, keys, head % group",
    ),
    bug("producer stops early", "fwd", FWD, "for t in range(sight.tiles):", "for t in range(sight.tiles - 1):"),
    bug("producer loads too much", "fwd", FWD, "for t in range(sight.tiles):", "for t in range(sight.tiles + 1):"),
    bug(
        "producer counts tiles from the first key",
        "fwd, window",
        FWD,
        "start_n = (sight.first + t) * BLOCK_N",
        "start_n = t * BLOCK_N",
    ),
    bug("half of Q's bytes announced", "fwd", FWD, "q_desc.block_type.nbytes)", "q_desc.block_type.nbytes // 2)"),
    bug(
        "both tiles of Q in one place",
        "fwd",
        FWD,
        "shared.q_full.index(wid), shared.q.index(wid))",
        "shared.q_full.index(wid), shared.q.index(0))",
    ),
    bug(
        "sink not in base 2",
        "fwd, wide values",
        FWD,
        "gl.load(sinks_ptr + plane % heads) * LOG2_E",
        "gl.load(sinks_ptr + plane % heads)",
    ),
    bug("sink of the first head", "fwd, wide values", FWD, "sinks_ptr + plane % heads", "sinks_ptr + plane * 0"),
    bug(
        "sink not in the total", "fwd, wide values", FWD, "total * shrink + gl.exp2(sink - new_peak)", "total * shrink"
    ),
    bug("NaN where a query sees no key", "fwd, flags", FWD, 'gl.where(sees_none, 1.0, float("nan"))', 'float("nan")'),
    bug(
        "LSE of 0 where a query sees no key",
        "fwd, flags",
        FWD,
        "gl.where(sees_none, -INF, ",
        "gl.where(sees_none, 0.0, ",
    ),
]

BUGS = [*RING_BUGS, *FWD_BUGS]

HARMLESS = [
    # Before the producer loads K(t) it has waited for the stage of V(t - 1), which is released after S(t - n) is done.
    swapped(
        "later K released before its product is done",
        "fwd",
        FWD,
        "    s = warpgroup_mma_wait(1, [s])\n",
        "    release(shared.k, t)\n",
    ),
    without("no turns", "fwd", FWD, "    if PING_PONG:\n        mbarrier.wait(shared.turn.index(wid), (t - 1) & 1)\n"),
    bug(
        "a fence more",
        "fwd",
        FWD,
        "    fence_async_shared()\n    async_store",
        "    fence_async_shared()\n    fence_async_shared()\n    async_store",
    ),
    bug("wait for V with that for K", "fwd", FWD, K_WAIT, K_WAIT + "    await_tile(shared.v, t - 1)\n"),
    bug("three stages", "fwd", FWD, "k = make_ring(k_desc, STAGES, 2)", "k = make_ring(k_desc, STAGES + 1, 2)"),
]
