"""Gluon kernels for Hopper on the CPU, under adversarial schedules, with every rule of their memory checked.

    from fusedformer import simulator
    simulator.run(kernel, grid, *args, seed=0, **constexprs)    # kernel[grid](*args, **constexprs)

The kernel's Python functions run as they stand; what the names of Gluon mean is replaced. The seed fixes everything.

"""

from fusedformer.simulator.errors import Deadlock, Hazard, UnsupportedError
from fusedformer.simulator.launch import run

__all__ = ["Deadlock", "Hazard", "UnsupportedError", "run"]
