"""Attention of q, k and v in float8 (e4m3) with a scale for each head: forward only."""
