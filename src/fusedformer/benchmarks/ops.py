"""Every op that the benchmarks measure, by name."""

from fusedformer.benchmarks import attention, gelu, layer_norm, softmax

OPS = {module.OP.name: module.OP for module in (layer_norm, softmax, gelu, attention)}
