"""What the benchmarks measure: every op and architecture, by name."""

from fusedformer.benchmarks import attention, bias_activation, gelu, glu, layer_norm, softmax
from fusedformer.benchmarks.models import ARCHITECTURES

OPS = {module.OP.name: module.OP for module in (layer_norm, softmax, gelu, bias_activation, glu, attention)}
SUBJECTS = (*OPS, *ARCHITECTURES)
