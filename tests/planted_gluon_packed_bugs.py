"""Bugs planted in what the Hopper kernels do for packed sequences, as planted_gluon_bugs.py."""

from planted_gluon import BWD, DQ, FWD, PACKING, QUERIES, RING, bug, without

EDGE = "edge = LARGEST_SEQUENCE - batch.length"
END = "batch.first + batch.length, head"
PACKING_BUGS = [
    bug("a row of the next sequence", "fwd, packed", PACKING, EDGE, EDGE + " - 1", (END, "1 + " + END)),
    bug("rows of the next sequence read", "fwd, packed", PACKING, EDGE, EDGE + " - 64", (END, "64 + " + END)),
    bug("last row left out", "fwd, packed", PACKING, EDGE, EDGE + " + 1", (END, "-1 + " + END)),
    bug("a row late", "fwd, packed", PACKING, END, "1 + " + END),
    bug("first sequence for all", "fwd, packed", PACKING, END, "batch.length, head"),
    bug("end for the first row", "fwd, packed", PACKING, END, "batch.first, head"),
    bug(
        "bounds of the whole tensor", "fwd, packed", PACKING,
        EDGE, "edge = 0", (END, "LARGEST_SEQUENCE + batch.first, head"),
    ),
    bug("first head for all", "fwd, packed", PACKING, "length, head, edge", "length, head * 0, edge"),
    bug("first tile for all", "fwd, packed", PACKING, "edge + start, column]", "edge, column]"),
    bug("address not brought back", "fwd, packed", PACKING, "return [LARGEST_SEQUENCE, ", "return [0, "),
    bug("rows of k for q's", "fwd, packed", PACKING, "(desc, packed.queries, plane", "(desc, packed.keys, plane"),
    bug("rows of q for k's", "fwd, packed", PACKING, "else packed.keys\n", "else packed.queries\n"),
    bug("numbers of the first sequence", "fwd, packed", PACKING, " + packed.numbers\n", "\n"),
    bug("numbers by the sequence's length", "fwd, packed", PACKING, "* packed.total_q", "* packed.queries.length"),
    bug("slots by the programs", "fwd, packed", PACKING, "gl.num_programs(0) // heads", "gl.num_programs(0)"),
    bug("slot of the program before", "fwd, packed", PACKING, "+ 2 * (gl.program_id(0)", "+ (gl.program_id(0)"),
    bug("tile of the sequence's number", "fwd, packed", PACKING, "gl.load(slot_ptr + 1)", "sequence"),
    bug("head by the slot", "fwd, packed", PACKING, "(0) // slots, gl", "(0) % slots, gl"),
    bug("keys where the queries begin", "fwd, packed", PACKING, "= _extent(starts_k_ptr", "= _extent(starts_q_ptr"),
    bug("queries where the keys begin", "fwd, packed", PACKING, "= _extent(starts_q_ptr", "= _extent(starts_k_ptr"),
    bug("end for a length", "fwd, packed", PACKING, "(sequence + 1)) - first)", "(sequence + 1)))"),
    bug("length with the next", "fwd, packed", PACKING, "(sequence + 1)) - first)", "(sequence + 2)) - first)"),
    bug("length of a row more", "fwd, packed, full", PACKING, "1)) - first)", "1)) - first + 1)"),
    without("queries of all sequences", "fwd, packed", FWD, "        seqlen_q = packed.queries.length\n"),
    without("keys of all sequences", "fwd, packed, full", FWD, "        seqlen_k = packed.keys.length\n"),
    bug("length of a row less", "fwd, packed", PACKING, "1)) - first)", "1)) - first - 1)"),
]  # fmt: skip

FWD_BUGS = [
    without("program without a tile goes on", "fwd, packed", FWD, "        if sequence < 0:\n            return\n"),
    bug("first query faces the first key", "fwd, packed", FWD, "diagonal = seqlen_k - seqlen_q", "diagonal = 0"),
    bug("K where Q is", "fwd, packed", FWD, "fill(shared.k, k_desc, keys,", "fill(shared.k, k_desc, packed.queries,"),
    bug("V where Q is", "fwd, packed", FWD, "fill(shared.v, v_desc, keys,", "fill(shared.v, v_desc, packed.queries,"),
    bug("key after the last one seen", "fwd, packed, full", FWD, "Sight(seqlen_k, lower", "Sight(seqlen_k + 1, lower"),
    bug("LSE over the next sequence", "fwd, packed", FWD, "is_row = i < seqlen_q", "is_row = i < seqlen_q + 1"),
    bug("flag of the second consumer", "fwd, packed, full", RING, "num_programs(0) * wid", "num_programs(0)"),
]  # fmt: skip

DQ_BUGS = [
    without("program without a tile goes on", "dq, packed", DQ, "        if sequence < 0:\n            return\n"),
    bug("first query faces the first key", "dq, packed", DQ, "diagonal = seqlen_k - seqlen_q", "diagonal = 0"),
    bug("K where Q is", "dq, packed", DQ, "fill(shared.k, k_desc, keys,", "fill(shared.k, k_desc, packed.queries,"),
    bug("V where Q is", "dq, packed", DQ, "fill(shared.v, v_desc, keys,", "fill(shared.v, v_desc, packed.queries,"),
    bug("numbers of the next sequence", "dq, packed", DQ, "plane, seqlen_q) + i", "plane, seqlen_q) + seqlen_q + i"),
    bug("flag of the second consumer for dQ", "dq, packed", RING, "num_programs(0) * wid", "num_programs(0)"),
]  # fmt: skip

BWD_BUGS = [
    without("program without a tile goes on", "dkdv, packed", BWD, "        if sequence < 0:\n            return\n"),
    bug("first query faces the first key", "dkdv, packed", BWD, "right += seqlen_k - seqlen_q", "right += 0"),
    bug("first key faces the last query", "dkdv, packed", BWD, "+= seqlen_k - seqlen_q", "+= seqlen_q - seqlen_k"),
    bug("no room between numbers", "dkdv, packed", BWD, "kv_heads, seqlen_q, BLOCK_M", "kv_heads, seqlen_q, 0"),
    bug("room of a consumer's keys", "dkdv, packed", BWD, "kv_heads, seqlen_q, BLOCK_M", "kv_heads, seqlen_q, KEYS"),
    bug("K where Q is", "dkdv, packed", BWD, "keys = keys_of(packed, batch)", "keys = queries_of(packed, batch)"),
    bug("Q where K is", "dkdv, packed", QUERIES, "queries = queries_of(packed, batch)", "queries = packed.keys"),
    bug("dK where Q is", "dkdv, packed", BWD, "corner(dk_desc, keys_of(packed", "corner(dk_desc, queries_of(packed"),
    bug("dQ where K is", "bwd, packed", BWD, "corner(dq_desc, queries_of(packed", "corner(dq_desc, keys_of(packed"),
    bug("dQ of the first columns alone", "bwd, packed", BWD, "tile * BLOCK_M, column)", "tile * BLOCK_M, 0)"),
    bug("last key hidden", "dkdv, packed, full", QUERIES, "ahead = seqlen_k - start", "ahead = seqlen_k - 1 - start"),
    bug("window of the last sequence", "dkdv, packed, window", BWD, "right += seqlen_k - seqlen_q", "right += 1"),
    bug("first key of a packed window", "bwd, packed, window", QUERIES, "(distance <= span)", "(distance < span)"),
    bug("queries after the last", "dkdv, packed", QUERIES, "= gl.cdiv(seqlen_q, BLOCK_M)", "= seqlen_q // BLOCK_M + 2"),
    bug("last tile of queries left out", "dkdv, packed", QUERIES, "gl.cdiv(seqlen_q, BLOCK_M)", "seqlen_q // BLOCK_M"),
    bug("flag of the second consumer", "dkdv, packed, full", BWD, "programs(0) * wid + gl", "programs(0) + gl"),
    bug("numbers of the first sequence for dK", "dkdv, packed", PACKING, "head, packed.numbers + start", "head, start"),
    bug("numbers of the first head", "dkdv, packed", PACKING, "[0, head, packed", "[0, head * 0, packed"),
    bug("a row of the next sequence for dK", "dkdv, packed", PACKING, EDGE, EDGE + " - 1", (END, "1 + " + END)),
    bug("last row left out of dQ's sums", "bwd, packed", PACKING, EDGE, EDGE + " + 1", (END, "-1 + " + END)),
]  # fmt: skip

BUGS = [*PACKING_BUGS, *FWD_BUGS, *DQ_BUGS, *BWD_BUGS]
