"""What the benchmarks measure: every op and architecture, by name."""

from fusedformer.benchmarks import (
    add_layer_norm,
    add_rms_norm,
    attention,
    bias_activation,
    cross_entropy,
    gelu,
    glu,
    layer_norm,
    log_softmax,
    masked_softmax,
    rms_norm,
    softmax,
)
from fusedformer.benchmarks.models import ARCHITECTURES

_NORMS = (layer_norm, rms_norm, add_layer_norm, add_rms_norm)
_MODULES = (*_NORMS, softmax, log_softmax, masked_softmax, cross_entropy, gelu, bias_activation, glu, attention)
OPS = {module.OP.name: module.OP for module in _MODULES}
SUBJECTS = (*OPS, *ARCHITECTURES)
