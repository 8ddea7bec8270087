"""Bugs planted in the persistent grid and in the forward of three consumers: the simulator must notice each."""

from planted_gluon import FWD, PERSISTENT, WORK, bug, without

GRID = "persistent"
RELEASE_Q = "    if q_empty is not None:\n        mbarrier.arrive(q_empty.index(wid), count=1)\n"
END_OF_CONSUMER = "        )  # fmt: skip\n        begin = end\n"
LAST_LOAD = "            fill(shared.v, v_desc, batch, head // group, start_n, t)\n"
END_OF_PRODUCER = LAST_LOAD + "        begin = end\n"
ROW_OF_WORK = "    return first + item % of_section % planes, item % of_section // planes"

PERSISTENT_BUGS = [
    bug("rings not carried over by a consumer", GRID, PERSISTENT, END_OF_CONSUMER, "        )\n"),
    bug("rings not carried over by the producer", GRID, PERSISTENT, END_OF_PRODUCER, LAST_LOAD),
    bug("phase of Q not carried over", GRID, FWD, "q_full.index(wid), number & 1)", "q_full.index(wid), 0)"),
    bug("phase of an empty Q", GRID, PERSISTENT, "number & 1 ^ 1)", "number & 1)"),
    without(
        "Q loaded before its consumer is done",
        GRID,
        PERSISTENT,
        "            mbarrier.wait(q_empty.index(wid), number & 1 ^ 1)\n",
    ),
    without("Q never given back", GRID, FWD, RELEASE_Q),
    bug("Q of the other consumer given back", GRID, FWD, "q_empty.index(wid), count", "q_empty.index(1 - wid), count"),
    bug(
        "Q given back before the scores",
        GRID,
        FWD,
        "    if sight.lower is not None:\n        for t in range(begin + 1",
        RELEASE_Q + "    if sight.lower is not None:\n        for t in range(begin + 1",
        (RELEASE_Q + "    await", "    await"),
    ),
    without(
        "last V never given back",
        GRID,
        FWD,
        "    if q_empty is not None:  # V is loaded anew too\n        release(shared.v, tiles - 1)\n",
    ),
    without(
        "O written while the tile before is stored",
        GRID,
        FWD,
        "    if q_empty is not None:\n        tma.store_wait(0)  # of the tile before\n",
    ),
    bug("O in the memory of Q", GRID, PERSISTENT, "out = make_tiles(out_desc, 2)", "out = q"),
    bug("store of the last O left under way", GRID, PERSISTENT, "    tma.store_wait(0)\n", "    pass\n"),
    bug("last round left out", "persistent, full", WORK, "count += 1", "count += 0"),
    bug("a tile too many", GRID, WORK, "_item(count) < items", "_item(count) <= items + 4"),
    bug("the same order in every round, for half", GRID, WORK, "number % 2 == 1", "number % 2 == 1 and place > 0"),
    bug("a tile computed twice", GRID, WORK, ROW_OF_WORK, ROW_OF_WORK.replace("item % of_section // planes", "0")),
    bug(
        "last section as large as the others",
        GRID,
        WORK,
        "gl.minimum(work.section, work.planes - first)",
        "work.section",
    ),
    bug("tiles from the first rows on in the producer", GRID, PERSISTENT, "tile) * (CONSUMERS", "0) * (CONSUMERS"),
    bug(
        "a tile of keys too few counted",
        "persistent, unseen",
        PERSISTENT,
        "end = begin + gl.maximum(tiles, 1)\n        sight",
        "end = begin + tiles\n        sight",
    ),
    bug("slopes of the first batch", "persistent, alibi", PERSISTENT, "plane // heads * slopes_batch", "plane % heads"),
    bug("window from the first key", "persistent, window", PERSISTENT, "first - begin, end)", "0 - begin, end)"),
]

THREE = "three"
THREE_BUGS = [
    bug("turn to the second of two", THREE, FWD, "(wid + 1) % CONSUMERS", "(wid + 1) % 2"),
    bug(
        "K empty after two of three",
        THREE,
        FWD,
        "k = make_ring(k_desc, STAGES, CONSUMERS)",
        "k = make_ring(k_desc, STAGES, 2)",
    ),
    bug(
        "V empty after two of three",
        THREE,
        FWD,
        "v = make_ring(v_desc, STAGES, CONSUMERS)",
        "v = make_ring(v_desc, STAGES, 2)",
    ),
    bug("two turns", THREE, FWD, "turn = make_barriers(CONSUMERS, 1)", "turn = make_barriers(2, 1)"),
    bug("tiles of two consumers", THREE, FWD, "ROWS // HEADS, CONSUMERS)", "ROWS // HEADS, 2)"),
    bug("rows of two consumers", THREE, FWD, "constexpr = CONSUMERS * ROWS //", "constexpr = 2 * ROWS //"),
]

BUGS = [*PERSISTENT_BUGS, *THREE_BUGS]

HARMLESS = [
    # Turns keep consumers out of step, whoever has the first.
    bug("first turn of every second tile to the other", GRID, FWD, "(t - 1 - number) & 1", "(t - 1) & 1"),
    bug("turns the other way round", THREE, FWD, "(wid + 1) % CONSUMERS", "(wid + CONSUMERS - 1) % CONSUMERS"),
]
