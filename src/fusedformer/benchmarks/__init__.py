"""The measuring side of the command line: one file per op, one harness."""
