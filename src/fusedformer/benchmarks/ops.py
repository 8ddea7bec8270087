"""What the benchmarks measure: ops, our models and patched ones, by name, the most valuable first."""

from fusedformer.benchmarks import (
    add_layer_norm,
    add_rms_norm,
    attention,
    attention_bias,
    attention_decode,
    attention_fp8,
    attention_varlen,
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
from fusedformer.benchmarks.patched import PATCHED

_NORMS = (layer_norm, rms_norm, add_layer_norm, add_rms_norm)
_MODULES = (*_NORMS, softmax, log_softmax, masked_softmax, cross_entropy, gelu, bias_activation, glu, attention)
OPS = {module.OP.name: module.OP for module in _MODULES}
_VARIANTS = (attention, attention_decode, attention_varlen, attention_bias, attention_fp8)
# In the order of their worth: what a run has no time for comes last. Attention is one op of the library, in five uses.
TIMED_OPS = {module.OP.name: module.OP for module in _VARIANTS} | {
    name: op for name, op in OPS.items() if name != attention.OP.name
}
SUBJECTS = (*TIMED_OPS, *ARCHITECTURES, *PATCHED)
