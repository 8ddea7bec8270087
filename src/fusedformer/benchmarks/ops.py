"""What the benchmarks measure: every op and architecture, by name."""

from fusedformer.benchmarks import (
    add_layer_norm,
    add_rms_norm,
    attention,
    bias_activation,
    gelu,
    glu,
    layer_norm,
    rms_norm,
    softmax,
)
from fusedformer.benchmarks.models import ARCHITECTURES

_MODULES = (layer_norm, rms_norm, add_layer_norm, add_rms_norm, softmax, gelu, bias_activation, glu, attention)
OPS = {module.OP.name: module.OP for module in _MODULES}
SUBJECTS = (*OPS, *ARCHITECTURES)
