"""Time of ops on a machine: the least that its peaks allow, and what a model expects.

    bound = max(FLOPs / peak of the unit, bytes / bandwidth)          (Williams, Waterman, Patterson, "Roofline", 2009)
    model = the same with the share of each peak that can be counted on

Our attention is modelled by the rate that the static world predicts of its machine code where it has one, see
kernels/attention/tuning.py. Launches and gaps between kernels take no time in the model, as in a CUDA graph.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from fusedformer.benchmarks.machines import Machine
from fusedformer.benchmarks.profile.family import Array, Sheet
from fusedformer.benchmarks.profile.tracing import TracedOp
from fusedformer.kernels.attention import tuning

# Products of matrices that attention_bwd counts, and those that its kernels compute (launch.py).
COUNTED_PRODUCTS, DQ_PRODUCTS, DKDV_PRODUCTS = 5, 3, 4


def bound_seconds(sheet: Sheet, machine: Machine) -> Array:
    """The least time of each op, once."""
    return np.maximum(sheet.flops / _peaks(sheet.ops, machine), sheet.n_bytes / machine.bandwidth)


def model_seconds(sheet: Sheet, machine: Machine) -> Array:
    """The time that a model expects of each op, once."""
    rates = _peaks(sheet.ops, machine) * machine.compute_share
    for index, op in enumerate(sheet.ops):
        if machine.arch is not None and op.name in ("attention_fwd", "attention_bwd"):
            rates[index] = predicted_rate(op.name, machine.arch, op.head_dim) or rates[index]
    return np.maximum(sheet.flops / rates, sheet.n_bytes / (machine.bandwidth * machine.memory_share))


@functools.cache
def predicted_rate(op: str, arch: int, head_dim: int) -> float | None:
    """FLOP/s of our attention in bfloat16 as the static world predicts it; None where it does not."""
    kernels = ("fwd",) if op == "attention_fwd" else ("dq", "dkdv")
    evidence = [tuning.row_of(kernel, arch, torch.bfloat16, head_dim).evidence for kernel in kernels]
    rates = [found.tflops * 1e12 for found in evidence if isinstance(found, tuning.Predicted)]
    if len(rates) < len(kernels):
        return None
    if op == "attention_fwd":
        return rates[0]
    return COUNTED_PRODUCTS / (DQ_PRODUCTS / rates[0] + DKDV_PRODUCTS / rates[1])


def _peaks(ops: Sequence[TracedOp], machine: Machine) -> Array:
    return np.array([machine.matrix_flops if op.on_matrix_unit else machine.vector_flops for op in ops])
