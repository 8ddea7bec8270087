"""Bugs planted in what the Hopper kernels do for packed sequences, as planted_gluon_bugs.py."""

from planted_gluon import FWD, PACKING, bug, without

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
    bug("first tile for all", "fwd, packed", PACKING, "edge + start, 0]", "edge, 0]"),
    bug("address not brought back", "fwd, packed", PACKING, "return [LARGEST_SEQUENCE, ", "return [0, "),
    bug("rows of k for those of q", "fwd, packed", PACKING, "else packed.queries\n", "else packed.keys\n"),
    bug("rows of q for those of k", "fwd, packed", PACKING, "else packed.keys\n", "else packed.queries\n"),
    bug("numbers of the first sequence", "fwd, packed", PACKING, " + packed.queries.first\n", "\n"),
    bug("numbers by the sequence's length", "fwd, packed", PACKING, "* packed.total_q", "* packed.queries.length"),
    bug("slots by the programs", "fwd, packed", PACKING, "gl.num_programs(0) // heads", "gl.num_programs(0)"),
    bug("slot of the program before", "fwd, packed", PACKING, "+ 2 * (gl.program_id(0)", "+ (gl.program_id(0)"),
    bug("tile of the sequence's number", "fwd, packed", PACKING, "load(slot_ptr + 1)", "load(slot_ptr)"),
    bug("head by the slot", "fwd, packed", PACKING, "(0) // slots, tile", "(0) % slots, tile"),
    bug("keys where the queries begin", "fwd, packed", PACKING, "= _extent(starts_k_ptr", "= _extent(starts_q_ptr"),
    bug("queries where the keys begin", "fwd, packed", PACKING, "= _extent(starts_q_ptr", "= _extent(starts_k_ptr"),
    bug("end for a length", "fwd, packed", PACKING, "(sequence + 1)) - first)", "(sequence + 1)))"),
    bug("length with the next", "fwd, packed", PACKING, "(sequence + 1)) - first)", "(sequence + 2)) - first)"),
    bug("length of a row more", "fwd, packed, full", PACKING, "1)) - first)", "1)) - first + 1)"),
    bug("length of a row less", "fwd, packed", PACKING, "1)) - first)", "1)) - first - 1)"),
]  # fmt: skip

FWD_BUGS = [
    without("program without a tile goes on", "fwd, packed", FWD, "        if sequence < 0:\n            return\n"),
    without("queries of all sequences", "fwd, packed", FWD, "        seqlen_q = packed.queries.length\n"),
    without("keys of all sequences", "fwd, packed, full", FWD, "        seqlen_k = packed.keys.length\n"),
    bug("first query faces the first key", "fwd, packed", FWD, "diagonal = seqlen_k - seqlen_q", "diagonal = 0"),
    bug("Q where K is", "fwd, packed", FWD, "queries = queries_of(packed, batch)", "queries = keys_of(packed, batch)"),
    bug("O where K is", "fwd, packed", FWD, "queries_of(packed, plane // heads)", "keys_of(packed, plane // heads)"),
    bug("LSE over the next sequence", "fwd, packed", FWD, ", lse, mask=i < seqlen_q)", ", lse, mask=i < seqlen_q + 1)"),
    bug("flag of the second consumer", "fwd, packed, full", FWD, "finite_ptr, acc, wid)", "finite_ptr, acc, 1)"),
]  # fmt: skip

BUGS = [*PACKING_BUGS, *FWD_BUGS]
