"""How many instructions an element may cost: what the kernels take now, so that no change takes more unnoticed.

Edited on purpose only, with the change that needs it. Figures are for sm_90, of the loops that go over 16 bytes of each
tensor (stores.py), rounded up; of kernels that go over rows, of the shape that streams them, in all its passes.

What would be too many: an H200 issues 132 SM x 4 instructions of 32 threads a cycle, at 1.7 GHz and 4.8 TB/s 6
instructions for each byte moved. So a bf16 element has the time of 24 in a forward (2 bytes read, 2 written), 36 in a
backward (4, 2) and in a gated forward (4, 2), 48 in a norm that adds (4, 4) and 60 in a gated backward (6, 4); an fp32
element twice that. All are below but GELU by erf forward in fp32, a tenth past it, and softmax with a mask of 16 bits
that many rows share.
"""

import re

GATED_ARCH = 90

_TYPES = ("__nv_bfloat16", "__half", "float")

# Kernel and the arguments that tell its variants apart: instructions by type of the input, in the order of _TYPES.
_INSTRUCTIONS = {
    ("gelu_fwd_kernel", "GeluErf"): (17.9, 17.4, 53.0),
    ("gelu_fwd_kernel", "GeluTanh"): (12.8, 12.3, 18.0),
    ("gelu_bwd_kernel", "GeluErf"): (21.8, 20.8, 67.3),
    ("gelu_bwd_kernel", "GeluTanh"): (22.8, 21.8, 28.0),
    ("bias_activation_fwd_kernel", "GeluErf"): (19.4, 18.9, 54.0),
    ("bias_activation_fwd_kernel", "GeluTanh"): (14.3, 13.8, 19.5),
    ("bias_activation_fwd_kernel", "Relu"): (4.3, 3.8, 4.1),
    ("bias_activation_bwd_kernel", "GeluErf"): (24.3, 23.3, 68.8),
    ("bias_activation_bwd_kernel", "GeluTanh"): (25.0, 24.0, 29.5),
    ("bias_activation_bwd_kernel", "Relu"): (9.1, 8.1, 6.9),
    ("glu_fwd_kernel", "GeluErf"): (21.5, 20.5, 54.8),
    ("glu_fwd_kernel", "GeluTanh"): (16.4, 15.4, 20.5),
    ("glu_fwd_kernel", "Silu"): (14.4, 13.4, 16.3),
    ("glu_bwd_kernel", "GeluErf"): (31.4, 29.9, 74.8),
    ("glu_bwd_kernel", "GeluTanh"): (29.7, 28.2, 36.0),
    ("glu_bwd_kernel", "Silu"): (25.2, 23.7, 27.8),
    ("softmax_fwd_kernel",): (17.4, 16.4, 34.0),
    ("softmax_bwd_kernel",): (15.9, 13.9, 15.5),
    ("log_softmax_fwd_kernel",): (15.4, 14.4, 25.5),
    ("log_softmax_bwd_kernel",): (14.0, 12.5, 22.8),
    ("masked_softmax_fwd_kernel", "bool"): (23.0, 22.0, 41.0),
    ("masked_softmax_fwd_kernel",): (28.3, 26.3, 42.0),
    ("masked_softmax_bwd_kernel",): (22.4, 20.4, 22.0),
    ("cross_entropy_fwd_kernel", "true"): (13.4, 12.9, 22.0),
    ("cross_entropy_fwd_kernel", "false"): (10.0, 9.5, 18.8),
    ("norm_fwd_kernel", "Centred", "false"): (19.7, 18.3, 22.8),
    ("norm_fwd_kernel", "Uncentred", "false"): (11.9, 10.9, 15.3),
    ("norm_fwd_kernel", "Centred", "true"): (47.0, 42.5, 48.5),
    ("norm_fwd_kernel", "Uncentred", "true"): (30.0, 27.0, 31.8),
    ("norm_bwd_kernel", "Centred"): (30.0, 28.0, 33.8),
    ("norm_bwd_kernel", "Uncentred"): (27.0, 25.0, 30.8),
}


def instructions(kernel: str, variant: str, arch: int) -> float | None:
    """The budget of a kernel's variant, which is named by its template arguments; None where there is none."""
    arguments = re.findall(r"\w+", variant)
    # What takes one element at a time is for rows without alignment, and rows in registers have no loop to count.
    if arch != GATED_ARCH or arguments[-1:] == ["1"] or ("RowShape" in arguments and arguments[-1] != "0"):
        return None
    budgets = (
        figures for (name, *others), figures in _INSTRUCTIONS.items() if name == kernel and {*others} <= {*arguments}
    )
    found = next(budgets, None)
    return found[_TYPES.index(next(name for name in arguments if name in _TYPES))] if found else None
