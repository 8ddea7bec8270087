"""Bugs planted in what the forward kernel does beside scaled products: softcap, ALiBi, and heads that share a tile."""

from planted_gluon import FWD, SCORES, bug, swapped, without

SOFTCAP_BUGS = [
    bug("no softcap", "fwd, softcap", SCORES, "if scoring.rate is not None:", "if False:"),
    bug("softcap of half the scores", "fwd, softcap", FWD, "2 * LOG2_E * (scale_log2", "LOG2_E * (scale_log2"),
    bug("softcap by a half", "fwd, softcap", FWD, "else 2 * softcap_log2", "else softcap_log2"),
    bug("softcap with the other sign", "fwd, softcap", SCORES, "-1.0 - gl.exp2(", "1.0 + gl.exp2("),
    bug(
        "softcap without its 1",
        "fwd, softcap",
        SCORES,
        "-1.0 - gl.exp2(s * scoring.rate)",
        "-gl.exp2(s * scoring.rate)",
    ),
    bug("LSE and sink without the softcap", "fwd, softcap", SCORES, "peak + scoring.softcap_log2", "peak"),
    bug("softcap taken from the highest score", "fwd, softcap", SCORES, "peak + scoring.soft", "peak - scoring.soft"),
    swapped(
        "capped scores masked before the cap",
        "fwd, softcap",
        FWD,
        "    s = score(s, i, (sight.first + t) * s.shape[1], scoring, layout)\n",
        "    if MASKED:\n        s = gl.where(visible_keys(i, t, sight, s.shape[1], layout), s, -INF)\n",
    ),
    swapped(
        "sink met before the softcap is put back",
        "fwd, softcap",
        FWD,
        "    peak = with_softcap(peak, scoring)\n",
        """    if sinks_ptr is not None:
        sink = gl.load(sinks_ptr + of_row % heads) * LOG2_E
        new_peak = gl.maximum(peak, sink)
        shrink = gl.exp2(peak - new_peak)
        total = total * shrink + gl.exp2(sink - new_peak)
        acc, tail = scaled(acc, tail, shrink, TAIL_V)
        peak = new_peak
""",
    ),
]

ALIBI_BUGS = [
    bug("no ALiBi", "fwd, alibi", SCORES, "if scoring.slopes is not None:", "if False:"),
    bug("ALiBi with the other sign", "fwd, alibi", SCORES, "s - distance *", "s + distance *"),
    bug("distance with its sign", "fwd, alibi", SCORES, "gl.abs(ahead.to(gl.float32)", "(ahead.to(gl.float32)"),
    bug("distance of the tile's first pair", "fwd, alibi", SCORES, "- gl.expand_dims(j & 6, 0)", ""),
    bug(
        "distance of the thread's first key", "fwd, alibi", SCORES, "(j & -7).to(gl.float32)", "(j & 1).to(gl.float32)"
    ),
    bug("neighbouring keys at one distance", "fwd, alibi", SCORES, "j & -7", "j & -8"),
    bug("distance from the first tile", "fwd, alibi", SCORES, "scoring.diagonal - start_n", "scoring.diagonal"),
    bug("distance from the tile before", "fwd, alibi", FWD, "(sight.first + t) * s", "(sight.first + t - 1) * s"),
    bug("distance from the first key seen", "fwd, alibi", FWD, "(sight.first + t) * s", "t * s"),
    bug("distance without the diagonal", "fwd, alibi", SCORES, "scoring.diagonal - start_n", "0 - start_n"),
    bug("slope not in base 2", "fwd, alibi", SCORES, "(LOG2_E / scoring.factor)", "(1 / scoring.factor)"),
    bug("slope not divided by the scale", "fwd, alibi", SCORES, "(LOG2_E / scoring.factor)", "LOG2_E"),
    bug("slope of the first head", "fwd, alibi", SCORES, " + head * scoring.slopes_stride", ""),
]

HEADS_BUGS = [
    bug("queries not divided by heads", "fwd, heads", FWD, "start_m + rows // HEADS", "start_m + rows"),
    bug("queries of a head side by side", "fwd, heads", FWD, "m + rows // HEADS", "m + rows % (ROWS // HEADS)"),
    bug("heads side by side", "fwd, heads", FWD, "plane * group + rows % HEADS", "plane * group + rows // 16"),
    bug("heads of a group rounded up", "fwd, heads", FWD, "of_row = plane * group", "of_row = plane * HEADS"),
    without("LSE of heads that are none", "fwd, heads", FWD, "        is_row = is_row & (rows % HEADS < group)\n"),
    bug("first head of the other group", "fwd, heads", FWD, "1 else plane * group\n    head", "1 else plane\n    head"),
    bug("rows of the first group", "fwd, heads", FWD, "plane % kv_heads, start_m", "plane * 0, start_m"),
    bug(
        "second consumer 64 queries on", "fwd, heads", FWD, "start_m += wid * (ROWS // HEADS)", "start_m += wid * ROWS"
    ),
    bug("its Q 64 queries on", "fwd, heads", FWD, "start_m + wid * (ROWS // HEADS)", "start_m + wid * ROWS"),
    bug(
        "programs of 128 queries",
        "fwd, heads",
        FWD,
        "constexpr = CONSUMERS * ROWS // HEADS",
        "constexpr = CONSUMERS * ROWS",
    ),
    bug(
        "keys of the first query",
        "fwd, heads",
        FWD,
        "BLOCK_N, ROWS // HEADS, CONSUMERS)\n    sight",
        "BLOCK_N, 1, CONSUMERS)\n    sight",
    ),
    bug(
        "tiles that the first query sees wholly",
        "fwd, heads",
        FWD,
        "BLOCK_N, begin + 1, ROWS // HEADS)",
        "BLOCK_N, begin + 1, 1)",
    ),
    bug("sink of the group's number", "fwd, heads", FWD, "sinks_ptr + of_row % heads", "sinks_ptr + plane % heads"),
    bug("slope of the group's number", "fwd, heads", FWD, "scoring, of_row % heads", "scoring, plane % heads"),
]

BUGS = [*SOFTCAP_BUGS, *ALIBI_BUGS, *HEADS_BUGS]

HARMLESS = [
    bug(
        "keys of 64 queries",
        "fwd, heads",
        FWD,
        "BLOCK_N, ROWS // HEADS, CONSUMERS)\n    sight",
        "BLOCK_N, ROWS, CONSUMERS)\n    sight",
    ),
    bug("fewer tiles without masks", "fwd, heads", FWD, "BLOCK_N, begin + 1, ROWS // HEADS)", "BLOCK_N, begin + 1)"),
]
