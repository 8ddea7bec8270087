"""Bugs planted in the products of tiles whose columns are no power of 2, as planted_gluon_bugs.py."""

from planted_gluon import BWD, DQ, FWD, PRODUCTS, WIDE, GluonBug, bug

TAIL_OF_A, TAIL_OF_B = "a.slice(HALF, TAIL, dim=1)", "b.slice(HALF, TAIL, dim=1)"
SECOND_SCORES = f"return warpgroup_mma({TAIL_OF_A}, tail, s, is_async=True)"
SECOND_SUM = "tail = warpgroup_mma(same, tile.slice(HALF, TAIL, dim=1), tail, is_async=True)"
FRESH_SUM = SECOND_SUM.replace("tail, is", "tail, use_acc=False, is")
STORED = "tile.slice(HALF, TAIL, dim=1).store(tail.to(tile.dtype))"
CASES = ("fwd, tails", "dq, tails", "dkdv, tails", "wide, tail of keys")


def in_all(name: str, old: str, new: str) -> list[GluonBug]:
    """An edit of the products, in each kernel that has them."""
    return [bug(f"{name} ({case})", case, PRODUCTS, old, new) for case in CASES]


BUGS = [
    *in_all("scores without the tail", SECOND_SCORES, "return s"),
    *in_all("scores of the tail alone", SECOND_SCORES, SECOND_SCORES.replace("s, is", "s, use_acc=False, is")),
    *in_all("first factor's tail from its first columns", TAIL_OF_A, TAIL_OF_A.replace("HALF", "0")),
    *in_all("second factor's tail from its first columns", TAIL_OF_B, TAIL_OF_B.replace("HALF", "0")),
    *in_all("second factor's tail from what is past it", TAIL_OF_B, TAIL_OF_B.replace("HALF", "HALF + HALF - TAIL")),
    *in_all("sums without the tail", SECOND_SUM, "pass"),
    *in_all("sums of the tail from the first columns", SECOND_SUM, SECOND_SUM.replace("HALF", "0")),
    *in_all("sums of the tail from the last tile alone", SECOND_SUM, FRESH_SUM),
    *in_all("tail not waited for", "(UNDER_WAY, [main, tail])", "(UNDER_WAY + 1, [main, tail])"),
    *in_all("tail stored in the first columns", STORED, STORED.replace("HALF", "0")),
    *in_all("tail not stored", STORED, "pass"),
    *in_all("main part stored in its place", "slice(0, HALF, dim=1).store(main", "slice(HALF, HALF, dim=1).store(main"),
    bug("tail not shrunk", "fwd, tails", PRODUCTS, "tail = tail * _for_rows(factors, TAIL)", "pass"),
    bug("tail of K from its first columns", "bwd, tails", BWD, "k.slice(wid * (D // 2)", "k.slice(0 * (D // 2)"),
    bug(
        "dQ's tail in another place of its tile",
        "bwd, tails",
        BWD,
        "slice(0, HALF, dim=1).store(dq)",
        "slice(D // 2 - HALF, HALF, dim=1).store(dq)",
    ),
    bug("fused dV of two parts left under way", "bwd, tails", BWD, "PARTS + FUSED, dv", "PARTS + FUSED + 1, dv"),
    bug("tail not divided", "fwd, tails", PRODUCTS, "tail = tail / _for_rows(divisors, TAIL)", "pass"),
    bug("tail of dQ not scaled", "dq, tails", PRODUCTS, "tail = tail * factor", "pass"),
    bug("tail of dK not scaled", "dkdv, tails", PRODUCTS, "tail = tail * factor", "pass"),
    bug("S left under way", "fwd, tail of keys", FWD, "1 if TAIL_V == 0 else 2, [s]", "2, [s]"),
    bug("S left under way", "dq, tail of keys", DQ, "1 if TAIL_V == 0 else 2, [s]", "2, [s]"),
    bug("S of two parts left under way", "dq, tails", DQ, "1 if TAIL_V == 0 else 2, [s]", "3, [s]"),
    bug("S of two parts left under way", "dkdv, tails", BWD, "(PARTS, [s])", "(PARTS + 1, [s])"),
    bug("dV of two parts left under way", "dkdv, tails", BWD, "PARTS + FUSED, dv", "PARTS + FUSED + 1, dv"),
    bug("dK of two parts left under way", "wide, tail of keys", WIDE, "(PARTS, sums", "(PARTS + 1, sums"),
]

HARMLESS = [
    # 192 columns as 256, 64 of which are 0, and 128 as two parts of 64.
    bug(
        "tails of the other's columns",
        "wide, tail of keys",
        WIDE,
        "TAIL if OF_V else TAIL_V  # tails",
        "TAIL_V if OF_V else TAIL  # tails",
        ("TAIL_V if OF_V else TAIL  # and", "TAIL if OF_V else TAIL_V  # and"),
    ),
]
