"""Other ways to compute what we compute: each pinned, by one name, and missing with a reason where it cannot be had.

Attention takes q (B, S, H, D), k and v (B, S, K, D), with K dividing H; `window` is how many keys before its own a
query sees, None for all.
"""
