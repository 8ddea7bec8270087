"""Bugs planted in the calls past the dispatcher: an overlooked mode, a gradient that is lost or of another input."""

from functools import partial

from planted import Bug

eager_bug = partial(
    Bug,
    tests=("tests/test_eager.py",),
    symptom="AssertionError|AttributeError|RuntimeError|did not raise|Segmentation",
    slow=True,
)

BUGS = [
    eager_bug(
        "needs of weight and bias swapped",
        "csrc/eager.cpp",
        "needs_dweight = node.needs(2), needs_dbias = node.needs(3);",
        "needs_dweight = node.needs(3), needs_dbias = node.needs(2);",
        slow=False,
    ),
    eager_bug(
        "dropout's own gradient lost",
        "csrc/eager.cpp",
        "return {saved[3].defined() ? dx : dresidual, dresidual,",
        "return {dresidual, dresidual,",
    ),
    eager_bug(
        "gradient of another half",
        "csrc/eager.cpp",
        "return {dx, saved[1].defined() ? dup",
        "return {dup, saved[1].defined() ? dx",
    ),
    eager_bug(
        "scale of an additive mask",
        "csrc/eager.cpp",
        "{scale == 1 ? dscores : dscores.mul(scale), ",
        "{dscores, ",
    ),
    eager_bug(
        "a z-loss without gradient",
        "csrc/eager.cpp",
        "dlse.defined() ? dlse.add(of_penalty) : of_penalty;",
        "dlse;",
    ),
    eager_bug(
        "zeros for a norm that nobody used",
        "csrc/eager.cpp",
        "grad.defined() ? grad : at::zeros_like(like)",
        "grad",
    ),
    eager_bug(
        "keys of the thread not looked at",
        "csrc/eager.h",
        "if (has_tangent || !is_usual ||",
        "if (has_tangent ||",
    ),
    eager_bug(
        "a tangent dropped",
        "csrc/eager.h",
        "if (has_tangent || !is_usual",
        "if (!is_usual",
    ),
    eager_bug(
        "a profiler overlooked",
        "csrc/eager.h",
        "         !at::hasCallbacks();",
        "         true;",
    ),
    eager_bug(
        "a mode of functions overlooked",
        "csrc/eager.h",
        "!at::impl::torch_function_mode_enabled() &&",
        "true &&",
    ),
    eager_bug(
        "gradients where none are wanted",
        "csrc/eager.h",
        "if (at::GradMode::is_enabled()) {\n    for_tensors",
        "if (true) {\n    for_tensors",
    ),
    eager_bug(
        "no derivative of a backward",
        "csrc/eager.h",
        "if (!any_requires_grad(args...)) {\n      if",
        "if (true) {\n      if",
    ),
    eager_bug(
        "a result kept alive by its own graph",
        "csrc/eager.h",
        "{ return {tensor, true}; }",
        "{ return {tensor, false}; }",
    ),
    eager_bug(
        "a subclass taken for a tensor",
        "csrc/eager.h",
        "if (!THPVariable_CheckExact(object))",
        "if (!THPVariable_Check(object))",
    ),
]
