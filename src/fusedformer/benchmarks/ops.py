"""What the benchmarks measure: every op and architecture, by name."""

from fusedformer.benchmarks import attention, cross_entropy, gelu, layer_norm, log_softmax, masked_softmax, softmax
from fusedformer.benchmarks.models import ARCHITECTURES

OPS = {
    module.OP.name: module.OP
    for module in (layer_norm, softmax, log_softmax, masked_softmax, cross_entropy, gelu, attention)
}
SUBJECTS = (*OPS, *ARCHITECTURES)
