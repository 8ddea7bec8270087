"""The static world: every shipped kernel variant compiled ahead of time, on a machine that needs no GPU."""
