"""Gluon kernels for Hopper on the CPU, under adversarial schedules, with every rule of their memory checked.

    from fusedformer import simulator
    simulator.run(kernel, grid, *args, seed=0, **constexprs)    # kernel[grid](*args, **constexprs)

The kernel's Python functions run as they stand; what the names of Gluon mean is replaced. The seed fixes everything
that is drawn. Programs run one after another, each of them so:

Schedules. Partitions of gl.warp_specialize are interrupted before each operation that another could notice. What goes
on next, of them and of the asynchronous operations under way, is drawn with weights that are random themselves, so
that some programs starve a partition or the TMA unit. A TMA load fills its tile with NaN at once and with data later,
in two pieces; TMA stores and matrix products read shared memory later; a product exists after a wait that covers it.

Order. Whatever the schedule was, of two accesses to an element of shared memory, one of them a write, one must come
before the other: by the order of a partition's own operations, an mbarrier or a named barrier between them, the wait
for a product, a TMA store or the mbarrier of a TMA load, or the start and end of gl.warp_specialize. Vector clocks
know (clocks.py). Threads of one partition are one here: the barriers that Triton puts between them are read in PTX.

Proxies. What threads stored, or an mbarrier they initialised, is there for asynchronous operations past a
fence_async_shared that lies behind the store and before the operation, in a partition that comes after the one and
before the other.

Barriers. An mbarrier takes as many arrivals a phase as its count says and no more. A wait names a phase by its parity,
as the hardware does, so the phase after it must not end before the wait returned, in the order above. A named barrier,
beyond those that Triton uses, has one number of threads a round.

Global memory. An element is written once a launch, or reduced into, and not read after that; nothing is out of bounds.

Ends. No program ends with a product, a TMA store or a TMA load that nobody waited for. When nothing can go on,
`Deadlock` tells where each partition waits, for what, and what that lacks.

Limits. Shared memory of a program, registers of partitions, the shapes of products and tiles, 32-bit integers that do
not overflow, hints (multiple_of, assume) that are true.

Products of 8 bits. An operand in shared memory is dense in the dimension that is summed over.

Numbers are torch's on the CPU: products of the operands as they are, in float32, where a GPU's of 8 bits are coarser;
what is rounded to float8 ends at the largest number. Layouts, bank conflicts, clusters and
time mean nothing here; a break of a rule is a `Hazard`, and what the simulator lacks an `UnsupportedError`.
"""

from fusedformer.simulator.errors import Deadlock, Hazard, UnsupportedError
from fusedformer.simulator.launch import run

__all__ = ["Deadlock", "Hazard", "UnsupportedError", "run"]
