"""Every small case of some ops once, forward and backward, on the GPU that is here: what compute-sanitizer watches.

A test suite would do, at many times the cost: the sanitizer makes each kernel tens of times slower. Without a GPU the
cases run on the CPU. The status is 1 if a result is wrong.
"""

import sys
from collections.abc import Sequence

import torch

from fusedformer.benchmarks.harness import worlds
from fusedformer.benchmarks.ops import OPS
from fusedformer.benchmarks.options import one_of


def main(names: Sequence[str]) -> int:
    """Run the ops of these names; print their rows.

    Raises:
        ValueError: there is no such op.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ops = [OPS[one_of("op", name, OPS)] for name in names]
    rows = [row for op in ops for row in worlds.error_rows(op, device, seed=0)]
    for row in rows:
        print(f"{row.subject} {row.case} {row.dtype}: {row.status} {row.reason}".rstrip())
    return 1 if any(row.status != "ok" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
