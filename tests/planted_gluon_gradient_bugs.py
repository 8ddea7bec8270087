"""Bugs planted in the kernels of the gradients, as planted_gluon_bugs.py."""

from planted_gluon import BWD, DQ, QUERIES, bug, swapped, without

LAST_LOOP = """range(whole_last, sight.tiles):
        dq, tail = _dq_step(
            t, dq, tail, q, dout, shift, delta, shared, sight, start_m, scale_log2,
            """
DQ_DONE = "    dq, tail = await_sums(0, dq, tail, TAIL)\n"
DQ_BUGS = [
    without("no wait for Q and dO", "dq", DQ, "    mbarrier.wait(shared.rows_full.index(wid), 0)\n"),
    without("no wait for K", "dq", DQ, "    await_tile(shared.k, t)\n"),
    without("no wait for V", "dq", DQ, "    await_tile(shared.v, t)\n"),
    swapped(
        "K released before its products are done",
        "dq",
        DQ,
        DQ_DONE,
        "    release(shared.k, t)\n",
    ),
    bug("wait leaves S under way", "dq", DQ, "wait(1 if", "wait(2 if"),
    bug("wait leaves dP under way", "dq", DQ, "wait(0, [dp])", "wait(1, [dp])"),
    bug("wait leaves dQ under way", "dq", DQ, DQ_DONE, DQ_DONE.replace("0", "1")),
    bug(
        "bytes of dO not announced",
        "dq",
        DQ,
        "q_desc.block_type.nbytes + dout_desc.block_type.nbytes",
        "q_desc.block_type.nbytes",
    ),
    bug(
        "dO of the first consumer for both",
        "dq",
        DQ,
        "query_corner(dout_desc, packed, plane, heads, rows)",
        "query_corner(dout_desc, packed, plane, heads, start_m)",
    ),
    bug("barriers not fenced", "dq", DQ, "    fence_async_shared()\n    gl.warp_specialize", "    gl.warp_specialize"),
    bug("dQ not fenced", "dq", DQ, "    fence_async_shared()\n    async_store", "    async_store"),
    without("store of dQ left under way", "dq", DQ, "    tma.store_wait(0)\n"),
    bug("dQ scaled in base 2", "dq", DQ, "scale_log2 * LN_2", "scale_log2"),
    bug(
        "shift of rows past the end read",
        "dq",
        DQ,
        "gl.load(shift_ptr + offsets, mask=i < seqlen_q, other=0.0)",
        "gl.load(shift_ptr + offsets)",
    ),
    bug("delta of the first head", "dq", DQ, "gl.load(delta_ptr + offsets", "gl.load(delta_ptr + i"),
    bug(
        "mask missing from the diagonal on",
        "dq",
        DQ,
        LAST_LOOP + "True",
        LAST_LOOP + "False",
    ),
    bug("diagonal off by one", "dq", DQ, "part + sight.upper > constant", "part + sight.upper > constant + 1"),
    bug("first key of a window not seen", "dq, window", DQ, "sight.lower <= constant", "sight.lower < constant"),
    bug(
        "V in K's place",
        "dq",
        DQ,
        "weighted(ds, tile_of(shared.k, t), dq",
        "weighted(ds, tile_of(shared.v, t), dq",
    ),
    bug(
        "V released twice",
        "dq",
        DQ,
        "    release(shared.v, t)\n",
        "    release(shared.v, t)\n    release(shared.v, t)\n",
    ),
]

DS_STORED = """        exchange.ds.index(t % 2).slice(ROWS * wid, ROWS).store(ds)
        fence_async_shared()
        barrier()
"""
DS_GIVEN = "        mbarrier.arrive(exchange.ds_full.index(t % 2), count=1)\n"
DS_WAIT = "        mbarrier.wait(exchange.ds_full.index(t % 2), (t // 2) & 1)\n"
DQ_WAIT = "        mbarrier.wait(exchange.dq_empty.index(wid), (t & 1) ^ 1)\n"
DQ_STORED = """        exchange.dq.index(wid).reshape([BLOCK_M, D // 2]).slice(0, HALF, dim=1).store(dq)
        fence_async_shared()
        barrier()
"""
DQ_GIVEN = "        mbarrier.arrive(exchange.dq_full.index(wid), count=1)\n"
DQ_SENT = "                tma.store_wait(0)\n"
DQ_FREED = """                for wid in gl.static_range(2):
                    mbarrier.arrive(exchange.dq_empty.index(wid), count=1)
"""
DK_DONE = "    dk, dk_tail = await_sums(1 if FUSED else 0, dk, dk_tail, TAIL)\n"
DV_DONE = "    dv, dv_tail = await_sums(PARTS + FUSED, dv, dv_tail, TAIL)\n"
DK_STORED = "dk, dk_tail, TAIL)\n"
BWD_BUGS = [
    bug("dK scaled in base 2", "dkdv", BWD, "scale_log2 * LN_2", "scale_log2"),
    bug("dS not fenced", "bwd", BWD, "store(ds)\n        fence_async_shared()\n", "store(ds)\n"),
    swapped("dS handed over before it is there", "bwd", BWD, DS_STORED, DS_GIVEN),
    without("no wait for the other's dS", "bwd", BWD, DS_WAIT),
    bug("phase of dS", "bwd", BWD, DS_WAIT, DS_WAIT.replace("& 1", "& 1 ^ 1")),
    bug("phase of dS as if it had one buffer", "bwd", BWD, DS_WAIT, DS_WAIT.replace("(t // 2)", "t")),
    bug("dS after one arrival", "bwd", BWD, "ds_full = make_barriers(2, 2)", "ds_full = make_barriers(2, 1)"),
    bug("dS after three arrivals", "bwd", BWD, "ds_full = make_barriers(2, 2)", "ds_full = make_barriers(2, 3)"),
    bug(
        "one buffer of dS",
        "bwd",
        BWD,
        "ds.index(t % 2).slice",
        "ds.index(t * 0).slice",
        ("ds.index(t % 2).permute", "ds.index(t * 0).permute"),
    ),
    bug("dS of both consumers in the same rows", "bwd", BWD, "slice(ROWS * wid, ROWS).store", "slice(0, ROWS).store"),
    bug(
        "dQ of both consumers from the same columns of K", "bwd", BWD, "k.slice(wid * (D // 2)", "k.slice(0 * (D // 2)"
    ),
    without("dQ over the tile that the writer reads", "bwd", BWD, DQ_WAIT),
    bug("phase of a free dQ", "bwd", BWD, DQ_WAIT, DQ_WAIT.replace(" ^ 1", "")),
    bug("dQ not fenced", "bwd", BWD, "store(dq)\n        fence_async_shared()\n", "store(dq)\n"),
    swapped("dQ handed over before it is there", "bwd", BWD, DQ_STORED, DQ_GIVEN),
    without(
        "writer does not wait for dQ",
        "bwd",
        BWD,
        "                    mbarrier.wait(exchange.dq_full.index(wid), t & 1)\n",
    ),
    bug(
        "writer waits for one half of dQ",
        "bwd",
        BWD,
        "mbarrier.wait(exchange.dq_full.index(wid)",
        "mbarrier.wait(exchange.dq_full.index(0)",
    ),
    swapped("writer frees dQ before it is read", "bwd", BWD, DQ_SENT, DQ_FREED),
    bug("writer leaves a reduction under way", "bwd", BWD, DQ_SENT, DQ_SENT.replace("0", "1")),
    bug(
        "writer frees one half of dQ",
        "bwd",
        BWD,
        "mbarrier.arrive(exchange.dq_empty.index(wid)",
        "mbarrier.arrive(exchange.dq_empty.index(0)",
    ),
    bug("halves of dQ in the same columns", "bwd", BWD, "column = wid * exchange", "column = 0 * exchange"),
    bug("dQ stored, not added", "bwd", BWD, "async_atomic_add(dq_desc", "async_store(dq_desc"),
    bug("dQ of the next tile", "bwd", BWD, "tile * BLOCK_M, column)", "tile * BLOCK_M + BLOCK_M, column)"),
    bug(
        "dQ of the wrong head",
        "bwd",
        BWD,
        "head = kv_head * passage.group + member",
        "head = kv_head + member * 0",
    ),
    without(
        "dK over Q that the other reads",
        "dkdv",
        BWD,
        "    mbarrier.wait(shared.queries_done.index(0), 0)  # the other has read the last of q, where dK may go\n",
    ),
    bug(
        "queries done after one arrival",
        "dkdv",
        BWD,
        "queries_done = make_barriers(1, 2)",
        "queries_done = make_barriers(1, 1)",
    ),
    bug("dK and dV not fenced", "dkdv", BWD, DK_STORED + "    fence_async_shared()\n", DK_STORED),
    without("dK and dV not waited for", "dkdv", BWD, "    mbarrier.wait(shared.done.index(0), 0)\n"),
    bug("done after one arrival", "dkdv", BWD, "    done = make_barriers(1, 2)", "    done = make_barriers(1, 1)"),
    without("stores of dK and dV left under way", "dkdv", BWD, "\n    tma.store_wait(0)"),
    bug(
        "dK and dV of both consumers in the same rows",
        "dkdv",
        BWD,
        "keys_of(packed, batch), kv_head, start_n + wid * ROWS)",
        "keys_of(packed, batch), kv_head, start_n)",
    ),
    bug("dV in dK's place", "dkdv", BWD, "dk_desc, corner_n, shared.dk", "dk_desc, corner_n, shared.v"),
    without("no wait for K and V", "dkdv", BWD, "    mbarrier.wait(shared.keys_full.index(0), 0)\n"),
    without("no wait for Q", "dkdv", BWD, "    await_tile(shared.q, t)\n"),
    without("no wait for dO", "dkdv", BWD, "    await_tile(shared.dout, t)\n"),
    bug("half of V's bytes announced", "dkdv", BWD, "+ 2 * v_desc", "+ v_desc"),
    bug(
        "bytes of shift not announced",
        "dkdv",
        QUERIES,
        "q_desc.block_type.nbytes + shift_desc.block_type.nbytes",
        "q_desc.block_type.nbytes",
    ),
    bug(
        "bytes of delta not announced",
        "dkdv",
        QUERIES,
        "dout_desc.block_type.nbytes + delta_desc.block_type.nbytes",
        "dout_desc.block_type.nbytes",
    ),
    bug("shift of the neighbouring stage", "dkdv", QUERIES, "shared.shift.index(t %", "shared.shift.index((t + 1) %"),
    bug("delta of the neighbouring stage", "dkdv", BWD, "shared.delta.index(t %", "shared.delta.index((t + 1) %"),
    bug(
        "delta loaded into the neighbouring stage",
        "dkdv",
        QUERIES,
        "full, shared.delta.index(stage)",
        "full, shared.delta.index(1 - stage)",
    ),
    bug("dO's bytes on Q's barrier", "dkdv", QUERIES, "            full = shared.dout.full.index(stage)\n", ""),
    bug("wait leaves S under way", "dkdv", BWD, "wait(PARTS, [s])", "wait(PARTS + 1, [s])"),
    bug("wait leaves dP under way", "dkdv", BWD, "wait(0, [dp])", "wait(1, [dp])"),
    bug("wait leaves dV under way", "dkdv", BWD, DV_DONE, DV_DONE.replace("PARTS", "PARTS + 1")),
    bug("wait leaves dK under way", "dkdv", BWD, DK_DONE, DK_DONE.replace("else 0", "else 1")),
    bug("fused wait leaves dV under way", "bwd", BWD, DV_DONE, DV_DONE.replace("PARTS", "PARTS + 1")),
    bug("fused wait leaves dK under way", "bwd", BWD, DK_DONE, DK_DONE.replace("1 if", "2 if")),
    bug("wait leaves dQ under way", "bwd", BWD, "wait(0, [dq])", "wait(1, [dq])"),
    swapped("Q released before its products are done", "dkdv", BWD, DK_DONE, "    release(shared.q, t)\n"),
    bug("one reader of Q counted", "dkdv", BWD, "q = make_ring(q_desc, STAGES, 2)", "q = make_ring(q_desc, STAGES, 1)"),
    bug(
        "barriers not fenced", "dkdv", BWD, "    fence_async_shared()\n    gl.warp_specialize", "    gl.warp_specialize"
    ),
    bug("diagonal off by one", "dkdv", BWD, "ahead - wid * ROWS", "ahead - wid * ROWS + 1"),
    bug("tile on the diagonal not masked", "dkdv", QUERIES, "(ROWS - 1 if CAUSAL", "(ROWS - 1 - BLOCK_M if CAUSAL"),
    bug(
        "last keys hidden",
        "bwd, full",
        QUERIES,
        "visible = (row & -9) - ahead < -(row & 8)",
        "visible = (row & -9) - ahead < -4 - (row & 8)",
    ),
    without(
        "next head's diagonal where the last one's was",
        "dkdv",
        QUERIES,
        "    if ahead == start + tiles * BLOCK_M:\n        ahead = start\n",
    ),
    bug(
        "first tile of queries skipped",
        "dkdv",
        QUERIES,
        "gl.maximum(start_n - right, 0) // BLOCK_M",
        "gl.cdiv(gl.maximum(start_n - right, 0), BLOCK_M)",
    ),
    bug(
        "wrong head of Q",
        "dkdv",
        QUERIES,
        "head = kv_head * passage.group + member",
        "head = kv_head + member * 0",
    ),
    bug(
        "last tile of queries not visited",
        "dkdv",
        QUERIES,
        "last = gl.cdiv(seqlen_q, BLOCK_M)",
        "last = seqlen_q // BLOCK_M",
    ),
    bug(
        "flag of a tile past the end",
        "dkdv, flags",
        BWD,
        "if tile * ROWS < seqlen_k:",
        "if tile * ROWS < seqlen_k + ROWS:",
    ),
]

BUGS = [*DQ_BUGS, *BWD_BUGS]

HARMLESS = [
    # Before the producer loads V(t) it has waited for the stage of K(t - n), which is released later.
    swapped(
        "V released before its product is done",
        "dq",
        DQ,
        "    dp = warpgroup_mma_wait(0, [dp])\n",
        "    release(shared.v, t)\n",
    ),
    bug(
        "all products waited for",
        "dq",
        DQ,
        "    s = warpgroup_mma_wait(1 if TAIL_V == 0 else 2, [s])\n",
        "    s, dp = warpgroup_mma_wait(0, [s, dp])\n",
        ("    dp = warpgroup_mma_wait(0, [dp])\n", ""),
    ),
    swapped("dO released before its product is done", "bwd", BWD, DV_DONE, "    release(shared.dout, t)\n"),
    bug("dS handed over after dK is under way", "bwd", BWD, DS_GIVEN, "", (DS_WAIT, DS_GIVEN + DS_WAIT)),
    bug(
        "halves of dQ freed in the other order",
        "bwd",
        BWD,
        "exchange.dq_empty.index(wid), count=1",
        "exchange.dq_empty.index(1 - wid), count=1",
    ),
    bug(
        "reduction waited for at once",
        "bwd",
        BWD,
        "exchange.dq.index(wid))\n",
        "exchange.dq.index(wid))\n                    tma.store_wait(0)\n",
    ),
]
