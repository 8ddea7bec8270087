"""Liger-Kernel's and QuACK's kernels over rows, where they are installed."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from fusedformer.benchmarks.harness.implementation import Function, Implementation, MissingError, need

LIGER, QUACK = "Liger-Kernel", "QuACK"
LAYER_NORM_EPS, RMS_NORM_EPS = 1e-5, 2.0**-23  # PyTorch's defaults


def liger(name: str, adapt: Callable[[Function], Function]) -> Implementation:
    """`adapt` of its function of that name: a function of the op's arguments."""
    return _from("liger_kernel", "liger-kernel", "liger_kernel.transformers.functional", name, adapt)


def quack(name: str, adapt: Callable[[Function], Function]) -> Implementation:
    """`adapt` of its function of that name: a function of the op's arguments."""
    return _from("quack", "quack-kernels", "quack", name, adapt)


def _from(root: str, package: str, module: str, name: str, adapt: Callable[[Function], Function]) -> Implementation:
    def build() -> Function:
        need(root, package)
        if not torch.cuda.is_available():
            raise MissingError("needs a CUDA device")
        try:
            return adapt(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError) as error:
            raise MissingError(f"{package}: {error}") from None

    return Implementation(build, package)


def _liger_cross_entropy(function: Function) -> Function:
    """Of a copy: it writes the gradient where the logits were, which the next call of a benchmark still needs."""

    def cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return function(logits.clone(), target, reduction="none", label_smoothing=label_smoothing)

    return cross_entropy


def _quack_cross_entropy(function: Function) -> Function:
    def cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        if label_smoothing:
            raise MissingError("has no label smoothing")
        return function(logits, target, reduction="none")

    return cross_entropy


def _liger_glu(name: str) -> Callable[[Function], Function]:
    """Its function of this name of ours."""

    def adapt(apply: Function) -> Function:
        def glu(gate: Tensor, up: Tensor, function: str) -> Tensor:
            if function != name:
                raise MissingError(f"has no {function} in this function")
            return apply(gate, up)

        return glu

    return adapt


def _itself(function: Function) -> Function:
    return function


OTHERS: dict[str, dict[str, Function]] = {
    "layer_norm": {
        LIGER: liger("liger_layer_norm", lambda norm: lambda x, weight, bias: norm(x, weight, bias, LAYER_NORM_EPS)),
    },
    "rms_norm": {
        LIGER: liger("liger_rms_norm", lambda norm: lambda x, weight: norm(x, weight, RMS_NORM_EPS, in_place=False)),
        QUACK: quack("rmsnorm", lambda norm: lambda x, weight: norm(x, weight, eps=RMS_NORM_EPS)),
    },
    "add_rms_norm": {
        LIGER: liger(
            "liger_fused_add_rms_norm",
            lambda norm: lambda x, residual, weight: norm(x, residual, weight, RMS_NORM_EPS, in_place=False)[0],
        ),
        QUACK: quack(
            "rmsnorm",
            lambda norm: (
                lambda x, residual, weight: norm(x, weight, residual=residual, eps=RMS_NORM_EPS, prenorm=True)[0]
            ),
        ),
    },
    "softmax": {LIGER: liger("liger_softmax", _itself), QUACK: quack("softmax", _itself)},
    "cross_entropy": {
        f"{LIGER}, of a copy": liger("liger_cross_entropy", _liger_cross_entropy),
        QUACK: quack("cross_entropy", _quack_cross_entropy),
    },
    "glu": {
        f"{LIGER} swiglu": liger("liger_swiglu", _liger_glu("swiglu")),
        f"{LIGER} geglu": liger("liger_geglu", _liger_glu("geglu_tanh")),
    },
}
