"""Bugs planted in log_softmax, masked softmax and cross entropy."""

from planted import Bug

MASKED_SOFTMAX_TESTS = ("tests/test_masked_softmax.py", "-k", "33 or last_column or strides")
LEAK_TESTS = ("tests/test_masked_softmax.py", "-k", "leak and not 3000")
CROSS_ENTROPY_TESTS = ("tests/test_cross_entropy.py", "-k", "within_budget or no_class or hide or strides")

BUGS = [
    Bug(
        "gradient summed after its exponentials",
        "csrc/log_softmax.cu",
        "values[i] -= exp_for<T>(y_values[i]) * sum.values[0];",
        "values[i] -= exp_for<T>(y_values[i] * sum.values[0]);",
        ("tests/test_log_softmax.py", "-k", "within_budget"),
        slow=True,
    ),
    Bug(
        "diagonal that ends above the last row",
        "csrc/masked_softmax.cu",
        "query + 1 + n - queries;",
        "query + 1;",
        MASKED_SOFTMAX_TESTS,
        symptom="times its budget|AssertionError",
        slow=True,
    ),
    Bug(
        "mask of the neighbouring column",
        "csrc/masked_softmax.cu",
        "(seen >> 8 * i & 0xff)",
        "(seen >> 8 * (i ^ 1) & 0xff)",
        MASKED_SOFTMAX_TESTS,
        slow=True,
    ),
    Bug(
        "hidden NaN added to the mask",
        "csrc/masked_softmax.cu",
        "x[first + i] = mask[i] == -INFINITY ? -INFINITY : score;",
        "x[first + i] = score;",
        LEAK_TESTS,
        symptom="Tensor-likes are not equal",
        slow=True,
    ),
    Bug(
        "hidden NaN of the gradient summed",
        "csrc/masked_softmax.cu",
        "dot.values[0] += y_values[i] == 0.0f ? 0.0f : dy_values[i] * y_values[i];",
        "dot.values[0] += dy_values[i] * y_values[i];",
        LEAK_TESTS,
        symptom="AssertionError",
        slow=True,
    ),
    Bug(
        "smoothing that leaves out a weight",
        "csrc/cross_entropy.cu",
        "sums.distances += weights[i] * (values[i] - origin);",
        "sums.distances += values[i] - origin;",
        ("tests/test_cross_entropy.py", "-k", "options"),
        slow=True,
    ),
    Bug(
        "target taken from the neighbouring column",
        "csrc/cross_entropy.cu",
        "values[i] -= i == static_cast<int>(target) ?",
        "values[i] -= i == static_cast<int>(target) + 1 ?",
        CROSS_ENTROPY_TESTS,
        slow=True,
    ),
    Bug(
        "target that is no class read",
        "csrc/cross_entropy.cu",
        "is_column(target >= 0 && target < n)",
        "is_column(target != labels.ignore_index)",
        CROSS_ENTROPY_TESTS,
        symptom="AssertionError|Segmentation fault",
        slow=True,
    ),
    Bug(
        "rows of a strided tensor as if they were contiguous",
        "csrc/strides.cuh",
        "rest % rows.sizes[level]",
        "rest",
        CROSS_ENTROPY_TESTS,
        symptom="times its budget|Segmentation fault",
        slow=True,
    ),
    Bug(
        "gradient of an ignored row",
        "csrc/cross_entropy.cu",
        "label.is_ignored ? Floats<place.kCount>{} : values",
        "values",
        CROSS_ENTROPY_TESTS,
        symptom="times its budget|AssertionError",
        slow=True,
    ),
]
