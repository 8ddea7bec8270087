"""Bugs planted in the kernel of dK and dV of wide heads, and in the windows of dK and dV, as planted_gluon_bugs.py."""

from planted_gluon import QUERIES, WIDE, bug, swapped, without

P_STORED = "    shared.p.index(stage).store(p)\n    barrier()\n"
P_GIVEN = "    mbarrier.arrive(shared.p_full.index(stage), count=1)\n"
P_WAIT = "    mbarrier.wait(shared.p_full.index(t % STAGES), (t // STAGES) & 1)\n"
SUMMED = "        sums, tail = await_sums(PARTS, sums, tail, SUMMED)\n"
SUMMED_DONE = "        release(summed, t - 1)\n"
RAW = "        raw = warpgroup_mma_wait(0, [raw])\n"
FIRST_RAW = "    raw = warpgroup_mma_wait(0, [raw])\n    w ="
NEXT = "        w = _weights(raw, shared, t, scale_log2, ahead, passage.span, OF_V, CAUSAL, raw_layout)\n"
KEYS_DONE_COUNT = "keys_done = make_barriers(1, "
KEYS_DONE = "    mbarrier.wait(shared.keys_done.index(0), 0)  # the other reads k or v, where these sums go\n"
WIDE_BUGS = [
    swapped("P handed over before it is there", "wide", WIDE, P_STORED, P_GIVEN),
    without("no wait for P", "wide", WIDE, P_WAIT),
    bug("phase of P", "wide", WIDE, P_WAIT, P_WAIT.replace("& 1", "& 1 ^ 1")),
    bug("phase of P as if it had one stage", "wide", WIDE, P_WAIT, P_WAIT.replace("(t // STAGES)", "t")),
    bug("one stage of P", "wide", WIDE, "shared.p.index(stage).store", "shared.p.index(stage * 0).store",
        ("shared.p.index(t % STAGES).load", "shared.p.index(t * 0).load")),
    bug("P of the neighbouring stage", "wide", WIDE, "shared.p.index(stage).store", "shared.p.index(1 - stage).store"),
    bug("delta left out", "wide, full", WIDE, "(raw - gl.expand_dims(delta, 0))", "raw"),
    bug("delta of the neighbouring stage", "wide", WIDE, "stage = t % shared.delta", "stage = (t + 1) % shared.delta"),
    without("no wait for K and V", "wide", WIDE, "    mbarrier.wait(shared.keys_full.index(0), 0)\n"),
    without("no wait for the first tile to score", "wide", WIDE, "    await_tile(scored, 0)\n"),
    without("no wait for a tile to score", "wide", WIDE, "        await_tile(scored, t)\n"),
    without("no wait for a tile to sum", "wide", WIDE, "        await_tile(summed, t - 1)\n"),
    without("no wait for the last tile to sum", "wide", WIDE, "    await_tile(summed, last)\n"),
    bug("wait leaves the first scores under way", "wide", WIDE, FIRST_RAW, FIRST_RAW.replace("0,", "1,", 1)),
    bug("wait leaves sums under way", "wide", WIDE, SUMMED, SUMMED.replace("PARTS", "PARTS + 1")),
    bug("wait leaves scores under way", "wide", WIDE, RAW, RAW.replace("0,", "1,")),
    bug(
        "wait leaves the last sums under way",
        "wide",
        WIDE,
        "await_sums(0, sums",
        "await_sums(1, sums",
    ),
    swapped("tile released before it is summed", "wide", WIDE, SUMMED, SUMMED_DONE),
    without("first tile never released", "wide", WIDE, "    release(scored, 0)\n"),
    without("tile never released", "wide", WIDE, "        release(scored, t)\n"),
    bug("weights of the tile before", "wide", WIDE, "tile_of(summed, t - 1), sums", "tile_of(summed, t), sums"),
    bug("one reader of Q counted", "wide", WIDE, "make_ring(q_desc, STAGES, 2)", "make_ring(q_desc, STAGES, 1)"),
    bug("diagonal where the tile before had it", "wide", WIDE, "ahead = next_ahead(ahead,", "_ = next_ahead(ahead,"),
    without("sums over keys that the other reads", "wide", WIDE, KEYS_DONE),
    bug("keys done after one arrival", "wide", WIDE, KEYS_DONE_COUNT + "2", KEYS_DONE_COUNT + "1"),
    bug("dK scaled in base 2", "wide", WIDE, "scale_log2 * LN_2", "scale_log2"),
    bug("sums not fenced", "wide", WIDE, "    fence_async_shared()\n    barrier()\n", "    barrier()\n"),
    bug("flags of both in the same place", "wide", WIDE, "zeros.index(1).store", "zeros.index(0).store"),
    without("flag of dK", "wide, flags", WIDE, " + shared.zeros.index(1).load(layout)"),
    without("sums not waited for", "wide", WIDE, "    mbarrier.wait(shared.done.index(0), 0)\n"),
    bug("done after one arrival", "wide", WIDE, "    done = make_barriers(1, 2)", "    done = make_barriers(1, 1)"),
    without("stores left under way", "wide", WIDE, "\n    tma.store_wait(0)"),
    bug(
        "bytes of V not announced",
        "wide",
        WIDE,
        "k_desc.block_type.nbytes + v_desc.block_type.nbytes",
        "k_desc.block_type.nbytes",
    ),
    bug("barriers not fenced", "wide", WIDE, "    fence_async_shared()\n    gl.warp_spec", "    gl.warp_spec"),
    bug("keys of the neighbouring tile", "wide", WIDE, "tiles_n * ROWS  #", "tiles_n * ROWS * 2  #"),
    bug("no tile for keys that no query sees", "wide, unseen", WIDE, "ROWS, BLOCK_M, 1)", "ROWS, BLOCK_M, 0)"),
]  # fmt: skip

WINDOW_BUGS = [
    bug("window off by one", "dkdv, window", QUERIES, "(distance <= span)", "(distance <= span + 1)"),
    bug("last query of a window left out", "wide, window", QUERIES, "(distance <= span)", "(distance < span)"),
    bug(
        "tile at the end of a window not masked",
        "bwd, window",
        QUERIES,
        "is_masked | (ahead + (BLOCK_M - 1) > span)",
        "is_masked | (ahead > span)",
    ),
    bug(
        "last tile of a window skipped",
        "dkdv, window",
        QUERIES,
        "gl.cdiv(gl.maximum(start_n + KEYS + span - right, 0), BLOCK_M)",
        "gl.maximum(start_n + KEYS + span - right, 0) // BLOCK_M",
    ),
    bug("window of the first keys alone", "wide, window", QUERIES, "(start_n + KEYS + span", "(start_n + span"),
]

BUGS = [*WIDE_BUGS, *WINDOW_BUGS]

HARMLESS = [
    # The producer waits for the release of q(t) before it fills what is of dout(t), and q(t) is done with later.
    swapped("tile released before its numbers are read", "wide", WIDE, NEXT, "        release(scored, t)\n"),
    bug(
        "both products waited for",
        "wide",
        WIDE,
        SUMMED + SUMMED_DONE + RAW,
        "        sums, raw = warpgroup_mma_wait(0, [sums, raw])\n" + SUMMED_DONE,
    ),
    bug(
        "more tiles than a window has", "dkdv, window", QUERIES, "(start_n + KEYS + span", "(start_n + 2 * KEYS + span"
    ),
]
