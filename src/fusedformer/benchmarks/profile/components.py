"""Which component of a transformer an op belongs to, by what it computes and by the module that it is called from.

For the models of this package, and by the usual names of modules for anybody's.
"""

import functools
import re

from fusedformer.benchmarks.profile.contenders import SCOPE as ATTENTION_SCOPE

OPTIMIZER_SCOPE, LOSS_SCOPE = "@optimizer", "@loss"

EMBEDDING, NORMS, QKV = "embedding", "norms", "qkv"
ATTENTION, SOFTMAX, ATTENTION_OUT = "attention", "softmax", "attention out"
MLP, ACTIVATION, RESIDUAL = "MLP", "activation", "residual"
LOGITS, LOSS, OPTIMIZER, OTHER = "logits", "loss", "optimizer", "other"
COMPONENTS = (
    EMBEDDING, NORMS, QKV, ATTENTION, SOFTMAX, ATTENTION_OUT, MLP, ACTIVATION, RESIDUAL, LOGITS, LOSS, OPTIMIZER, OTHER
)  # fmt: skip
"""In the order in which a model computes them."""

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "convolution_backward"})

_FUSED_ATTENTION = re.compile(r"attention_(fwd|bwd|decode)$|_scaled_dot_product_|_flash_attention|_efficient_attention")
_SOFTMAX = re.compile(r"^_(safe_)?softmax|^softmax|^masked_softmax")
_LOSS = re.compile(r"cross_entropy|nll_loss|log_softmax|mse_loss")
_NORM = re.compile(r"(layer|rms)_norm")
_ACTIVATION = re.compile(r"(^|_)(gelu|silu|relu|swiglu|geglu|glu|sigmoid|tanh)(_|$)")
_EMBEDDING = re.compile(r"^embedding")

_ATTENTION_MODULE = re.compile(r"att(entio)?n", re.IGNORECASE)
_OUT_MODULE = re.compile(r"^(out|o|c|out_proj|o_proj|c_proj|proj|dense|wo)$")
_MLP_MODULE = re.compile(r"^(feed_forward|mlp|ffn|ff)$|MLP|FeedForward", re.IGNORECASE)
_HEAD_MODULE = re.compile(r"(^|_)head$|^unembed")
_EMBEDDING_MODULE = re.compile(r"embedding|^(wte|wpe|embed\w*)$")
_NORM_MODULE = re.compile(r"(^|_)(norm|ln)(\d*|_\w+)$|^ln_", re.IGNORECASE)
_ACTIVATION_MODULE = re.compile(r"^(act|activation)", re.IGNORECASE)


@functools.cache
def component(op: str, path: tuple[str, ...]) -> str:
    """The component of an op.

    Args:
        op: its name without namespace and overload, such as "mm".
        path: names of the modules and scopes around it, the outermost first; empty outside all modules.
    """
    if OPTIMIZER_SCOPE in path:
        return OPTIMIZER
    if _FUSED_ATTENTION.search(op) or ATTENTION_SCOPE in path:
        return SOFTMAX if _SOFTMAX.search(op) else ATTENTION
    for pattern, name in ((_NORM, NORMS), (_LOSS, LOSS), (_EMBEDDING, EMBEDDING), (_ACTIVATION, ACTIVATION)):
        if pattern.search(op):
            return name
    if LOSS_SCOPE in path:
        return LOGITS if op in PRODUCTS else LOSS
    return _by_module(op, path)


def _by_module(op: str, path: tuple[str, ...]) -> str:
    last = path[-1] if path else ""
    if not path or _HEAD_MODULE.search(last):
        return LOGITS if op in PRODUCTS else OTHER
    if op == "add" and _NORM_MODULE.search(last):
        return RESIDUAL  # the gradient of the stream that a norm reads, from both ways
    if any(map(_EMBEDDING_MODULE.search, path)):
        return EMBEDDING
    for pattern, name in ((_NORM_MODULE, NORMS), (_ACTIVATION_MODULE, ACTIVATION)):
        if pattern.search(last):
            return name
    inner = [name for name in path if _ATTENTION_MODULE.search(name) or _MLP_MODULE.search(name)]
    if not inner:
        return MLP if op in PRODUCTS else RESIDUAL
    if _MLP_MODULE.search(inner[-1]):
        return MLP
    return ATTENTION_OUT if _OUT_MODULE.search(last) else QKV
