"""Bugs planted in the forward kernel of float8: the simulator must notice each, on every schedule.

What it shares with that of 16 bits, the rings, has its bugs in planted_gluon_bugs.py. HARMLESS: edits that change
nothing, which the simulator must accept.
"""

from planted_gluon import FP8, bug, swapped, without

S_WAIT = "    s = warpgroup_mma_wait(1, [s])\n"
V_WAIT = "    weighted = warpgroup_mma_wait(0, [weighted])\n"
ADD = "    acc = _add(sums, weighted, out_layout)\n    return"
FIRST_WEIGHTS = "_softmax(s, sums, i, 0, sight, scale_log2, True, s_layout)"

BUGS = [
    # Weights and values in the order of keys that the tensor core wants
    bug("weights in another order than values", "fp8, full", FP8, "[0, 1, 3, 2, 4])", "[0, 3, 1, 2, 4])"),
    bug("neighbours swapped in a word", "fp8, full", FP8, "low, $2, $1;", "low, $1, $2;"),
    bug("pair taken twice", "fp8, full", FP8, "high, $4, $3;", "high, $2, $1;"),
    bug("second weight of a word in the third place", "fp8, full", FP8, "words >> 8)", "words >> 16)"),
    bug("last weight of a word lost", "fp8, full", FP8, "words >> 24)", "words >> 16)"),
    bug(
        "words taken apart by halves",
        "fp8, full",
        FP8,
        "gl.join(low, high), [0, 1, 3, 2])",
        "gl.join(low, high), [0, 1, 2, 3])",
    ),
    bug(
        "values of dimensions in place of keys",
        "fp8, full",
        FP8,
        "tile * v_desc.block_type.shape[2]",
        "tile * v_desc.block_type.shape[3]",
    ),
    # Sums
    bug("weights past the end of e4m3", "fp8, full", FP8, "constexpr(8.0)", "constexpr(9.0)"),
    bug(
        "sums of values not shrunk",
        "fp8",
        FP8,
        "sums.acc * gl.expand_dims(shrink, 1) + weighted",
        "sums.acc + weighted",
    ),
    bug("sums of values shrunk a tile early", "fp8", FP8, ADD, ADD.replace("_add(sums", "_add(after")),
    bug("sums of values shrunk a tile late", "fp8", FP8, "Sums(acc, after.shrink,", "Sums(acc, sums.shrink,"),
    bug("total not shrunk", "fp8", FP8, "sums.total * shrink +", "sums.total +"),
    bug("total of the last tile alone", "fp8", FP8, "after.total), _packed", "sums.total), _packed"),
    bug(
        "last tile of values left out",
        "fp8, full",
        FP8,
        "shared, tiles - 1, out_layout)",
        "shared, tiles - 2, out_layout)",
    ),
    # Scales of heads
    bug("no descale of queries", "fp8", FP8, "_descale(q_descale_ptr, plane) * ", ""),
    bug("no descale of keys", "fp8", FP8, " * _descale(k_descale_ptr, plane_k)", ""),
    bug("no descale of values", "fp8", FP8, "descale_v / total", "1.0 / total"),
    bug("descale of values for the sum", "fp8", FP8, "descale_v = _descale(v_desc", "descale_v = 1 / _descale(v_desc"),
    bug("descale of keys by the query head", "fp8", FP8, "plane_k = plane // group", "plane_k = plane"),
    bug("descale of the first query head", "fp8", FP8, "q_descale_ptr, plane)", "q_descale_ptr, plane * 0)"),
    # Masks
    bug("no mask in the first tile", "fp8, hidden", FP8, FIRST_WEIGHTS, FIRST_WEIGHTS.replace("True", "False")),
    bug("mask of the tile before", "fp8", FP8, "visible_keys(i, t, sight", "visible_keys(i, t - 1, sight"),
    bug("no mask on the left", "fp8, window", FP8, "lower = None if left is None else diagonal - left", "lower = None"),
    bug("NaN where a query sees no key", "fp8, hidden", FP8, 'gl.where(sees_none, 1.0, float("nan"))', 'float("nan")'),
    bug(
        "LSE of 0 where a query sees no key",
        "fp8, hidden",
        FP8,
        "gl.where(sees_none, -INF, ",
        "gl.where(sees_none, 0.0, ",
    ),
    bug("LSE in base 2", "fp8", FP8, "gl.log2(total)) * LN_2", "gl.log2(total))"),
    # Order
    without("no wait for K", "fp8", FP8, "    await_tile(shared.k, t)\n"),
    without("no wait for V", "fp8", FP8, "    await_tile(shared.v, t - 1)\n"),
    without("no wait for the last V", "fp8", FP8, "    await_tile(shared.v, tiles - 1)\n"),
    without("no wait for Q", "fp8", FP8, "    mbarrier.wait(shared.q_full.index(wid), 0)\n"),
    bug("scores not waited for", "fp8", FP8, "warpgroup_mma_wait(1, [s])", "warpgroup_mma_wait(2, [s])"),
    bug("values not waited for", "fp8", FP8, V_WAIT + "    release", V_WAIT.replace("(0,", "(1,") + "    release"),
    swapped("V released before its product is done", "fp8", FP8, V_WAIT, "    release(shared.v, t - 1)\n"),
    without("K never released", "fp8, full", FP8, "    release(shared.k, t)\n"),
    without("V never released", "fp8, full", FP8, "    release(shared.v, t - 1)\n"),
    bug("V of the wrong tile released", "fp8, full", FP8, "release(shared.v, t - 1)", "release(shared.v, t)"),
    bug("turn never handed over", "fp8", FP8, "mbarrier.arrive(shared.turn.index(1 - wid), count=1)", "pass"),
    bug("turn handed to itself", "fp8, full", FP8, "shared.turn.index(1 - wid)", "shared.turn.index(wid)"),
    bug("no fence before the TMA store", "fp8", FP8, "    fence_async_shared()\n    async_store", "    async_store"),
    without("TMA store left under way", "fp8", FP8, "    tma.store_wait(0)\n"),
    bug("O of both consumers in one place", "fp8", FP8, "out = shared.out.index(wid)", "out = shared.out.index(0)"),
    bug("K of the query head", "fp8", FP8, "k_desc, batch, head // group,", "k_desc, batch, head,"),
    bug("producer stops early", "fp8", FP8, "for t in range(sight.tiles):", "for t in range(sight.tiles - 1):"),
    bug("producer counts tiles from the first key", "fp8, window", FP8, "tile = sight.first + t", "tile = t"),
]

HARMLESS = [
    swapped("later K released before its product is done", "fp8", FP8, S_WAIT, "    release(shared.k, t)\n"),
    without("no turns", "fp8", FP8, "    if PING_PONG:\n        mbarrier.wait(shared.turn.index(wid), (t - 1) & 1)\n"),
    bug("three stages", "fp8", FP8, "k = make_ring(k_desc, STAGES, 2)", "k = make_ring(k_desc, STAGES + 1, 2)"),
    bug(
        "wait for V with that for K",
        "fp8",
        FP8,
        "    await_tile(shared.k, t)\n",
        "    await_tile(shared.k, t)\n    await_tile(shared.v, t - 1)\n",
    ),
    bug(
        "turns of the other consumer first",
        "fp8",
        FP8,
        "mbarrier.arrive(turn.index(0), count=1)",
        "mbarrier.arrive(turn.index(1), count=1)",
    ),
]
