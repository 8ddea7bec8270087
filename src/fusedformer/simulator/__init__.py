"""Gluon kernels for Hopper on the CPU, under adversarial schedules, with every rule of their memory checked.

    from fusedformer import simulator
    simulator.run(kernel, grid, *args, seed=0, clocks=True, num_warps=4, **constexprs)   # kernel[grid](*args, ...)

`args` are what a launch on a GPU takes: CPU tensors, `TensorDescriptor`s of CPU tensors (Triton's own class), numbers.
"""
