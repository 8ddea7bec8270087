"""How many instructions a stored element may cost: what the kernels take now, so that no change takes more unnoticed.

Edited on purpose only, with the change that needs it. Figures are for sm_90, of the loop that stores 16 bytes at a time
(stores.py), rounded up. What would be too many: an H200 issues 132 SM x 4 instructions of 32 threads a cycle, at 1.7
GHz and 4.8 TB/s 6 instructions for each byte moved. So a bf16 element has the time of 24 in a forward (2 bytes read, 2
written), 36 in a backward (4, 2) and in a gated forward (4, 2), and for each of both results 30 in a gated backward
(6, 4); an fp32 element twice that. All are below but GELU by erf forward in fp32, a tenth past it.
"""

GATED_ARCH = 90

_TYPES = ("__nv_bfloat16", "__half", "float")

# (kernel, activation): instructions by type of the input, in the order of _TYPES.
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
    ("glu_bwd_kernel", "GeluErf"): (15.7, 15.0, 37.4),
    ("glu_bwd_kernel", "GeluTanh"): (14.9, 14.1, 18.0),
    ("glu_bwd_kernel", "Silu"): (12.6, 11.9, 13.9),
}


def instructions(kernel: str, variant: str, arch: int) -> float | None:
    """The budget of a kernel's variant, which is named by its template arguments; None where there is none."""
    arguments = variant.split(", ")
    if arch != GATED_ARCH or arguments[-1] == "1":  # what takes one element at a time is for rows without alignment
        return None
    budgets = next((_INSTRUCTIONS[kernel, name] for name in arguments if (kernel, name) in _INSTRUCTIONS), None)
    return budgets[_TYPES.index(arguments[0])] if budgets else None
